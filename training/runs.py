"""The run folder: what is in it, and how it is opened."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import platform
import re
import shutil
from pathlib import Path

from kxray.io.files import replacing, write_whole
from training import shell

_TEXT = (
    *("path", "patient_id", "group", "label", "predicted", "predicted_with_flips"),
    *("coarse", "coarse_predicted", "coarse_predicted_flips"),
)
# What an option for a path also takes, as in `--init imagenet` or `--weights none`.
_NO_PATHS = ("auto", "imagenet", "none")


def default_folder(recipe_name, source_name, root="runs") -> Path:
    """The next free `runs/00012-view_classifier-views`."""
    root = Path(root)
    taken = [re.match(r"(\d+)-", entry.name) for entry in root.iterdir()] if root.is_dir() else []
    number = 1 + max((int(match[1]) for match in taken if match), default=-1)
    return root / f"{number:05d}-{recipe_name}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', source_name)}"


def check_free(folder) -> None:
    """Raises ValueError if a new run may not use this folder: an existing run is never written over."""
    folder = Path(folder)
    # Hidden files may be what a kill left of a config.json that was being written.
    if folder.exists() and (
        not folder.is_dir() or any(not entry.name.startswith(".") for entry in folder.iterdir())
    ):
        raise ValueError(f"{folder} is not empty; continue that run with --resume, or choose another --out")


def create(folder) -> Path:
    """Makes a run folder, or says why not."""
    check_free(folder)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def carried_out(folder, resume, console, work):
    """Does the work of a run folder under a progress display, and gives what the work gives.

    Where it fails before anything was made of its films, a new folder is removed: films or options will not
    do, and the corrected command may use the same folder.

    Args:
        folder: of the run.
        resume: whether the run was begun by an earlier call.
        console: rich console.
        work: function of a rich progress with a `facts` field.
    """
    shell.load_tensorflow()
    progress = shell.progress_bars(console)
    try:
        with progress:
            return work(progress)
    except (ValueError, OSError):
        if not resume and "data_fingerprint" not in read_config(folder):
            discard(folder)
        raise


def discard(folder) -> None:
    """Removes what a run that never began has put into its folder."""
    folder = Path(folder)
    for name in ("work", "phantoms", "films", "relabelled"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("config.json", "skipped.csv"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def with_absolute_places(recipe, given) -> tuple:
    """The recipe and the given options with absolute paths: a run can be resumed from another folder."""
    places = {
        name: str(Path(given[name]).resolve())
        for name in ("data", "corrections", "export", "init", "align", "masks")
        if given.get(name) and given[name] not in _NO_PATHS
    }
    if given.get("weights"):
        places["weights"] = _absolute_weights(given["weights"])
    return dataclasses.replace(recipe, **places), {**given, **places}


def _absolute_weights(text):
    """The path of a file or run made absolute, or each of NAME=FILE,NAME=none; other words stay."""
    parts = [("", "", text)]
    if "=" in text and not os.path.exists(text):
        parts = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    return ",".join(f"{name}{equals}{_absolute(start)}" for name, equals, start in parts)


def _absolute(start):
    is_path = start not in _NO_PATHS and os.path.exists(start)
    return str(Path(start).resolve()) if is_path else start


def resumed(recipe, given) -> tuple:
    """(folder, recipe) of an interrupted run, with its own options: `given` may not change them."""
    if not recipe.out:
        raise ValueError("--resume needs --out, the run folder to continue")
    config = read_config(recipe.out)
    kept = {**config["options"], "resume": True, "out": recipe.out}
    names = {field.name for field in dataclasses.fields(recipe)}
    if not set(kept) <= names:
        raise ValueError(
            f"{recipe.out}: written by another version, with options {sorted(set(kept) - names)}"
        )
    for name, value in given.items():
        if value is not None and kept.get(name) != value:
            raise ValueError(
                f"the run in {recipe.out} was started with --{name.replace('_', '-')} {kept.get(name)}, "
                f"not {value}; resume it without that option, or start a new run"
            )
    return Path(recipe.out), dataclasses.replace(recipe, **kept)


def starting_notes(recipe, fingerprint, paths) -> list[str]:
    """What a reader of the scores must know of a run's starting weights.

    Args:
        recipe: its `init` or `weights` may name a run folder, or the .keras file in one.
        fingerprint: of this run's films.
        paths: their files.
    """
    start = getattr(recipe, "init", None) or getattr(recipe, "weights", None)
    return [] if start is None else seen_before(start, "starting weights of", fingerprint, paths)


def seen_before(start, what, fingerprint, paths) -> list[str]:
    """Whether a trained model has seen the films that are scored with its help.

    Args:
        start: a run folder, or the .keras file in one; of anything else nothing is known.
        what: the model is here, in words before its name.
        fingerprint: of the films.
        paths: their files.
    """
    folder = Path(start)
    folder = folder.parent if folder.suffix == ".keras" else folder
    if not (folder / "spec.json").is_file():
        return []
    provenance = json.loads((folder / "spec.json").read_text(encoding="utf-8")).get("provenance", {})
    if provenance.get("data_fingerprint") == fingerprint:
        return [f"the {what} {start} were trained on these very films: scores are too good"]
    trained = _trained_films(folder)
    if not trained:
        return [
            f"the {what} {start}: the films they were trained on cannot be found any more; some of these may "
            "be among them"
        ]
    shared = _shared_films(list(paths), trained)
    if not shared:
        return []
    return [f"the {what} {start} were trained on {shared} of these {len(paths)} films: scores are too good"]


def _trained_films(folder) -> list[str]:
    """The films that a run's kept model was trained on or chosen by, of those that are still there."""
    from kxray import data

    try:
        chosen = read_config(folder)["options"]
        lines = (folder / "split.csv").read_text(encoding="utf-8").splitlines()[2:]
        tables = [data.read_source(chosen.get("data") or folder / "phantoms", check=False)]
        if chosen.get("corrections"):
            tables.append(data.read_manifest(chosen["corrections"], check=False))
    except (ValueError, OSError):
        return []
    # A model that is kept after folds was trained on all of them.
    kept = {name for name, part in csv.reader(lines) if chosen.get("folds") or part != "test"}
    trained = [path for path in tables[0]["path"] if any(name in kept for name in _endings(path))]
    return [
        path
        for path in [*trained, *(path for table in tables[1:] for path in table["path"])]
        if os.path.isfile(path)
    ]


def _endings(path):
    """A path, and what is left of it without its first folders: a split names films from a common one on."""
    parts = Path(path).parts
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _shared_films(paths, trained) -> int:
    """How many films are among others, as the same file or as a copy of it."""
    from kxray.data.audit import file_digests

    places = {os.path.realpath(path) for path in trained}
    others = [path for path in paths if os.path.realpath(path) not in places and os.path.isfile(path)]
    # Only files of one size can be copies.
    sizes = {os.path.getsize(path) for path in others} & {os.path.getsize(path) for path in trained}
    others, trained = (
        [path for path in these if os.path.getsize(path) in sizes] for these in (others, trained)
    )
    copies = set(file_digests(trained))
    return sum(os.path.realpath(path) in places for path in paths) + sum(
        digest in copies for digest in file_digests(others)
    )


def read_config(folder) -> dict:
    """The resolved options of a run that is to be resumed."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: nothing to resume, it has no config.json; start it without --resume"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        raise ValueError(f"{path}: not the options of a run; start a new run")
    return config


def versions() -> dict:
    """Everything a number in this run depends on beside its options."""
    import keras
    import numpy
    import sklearn
    import tensorflow

    import kxray

    return {
        "kxray": kxray.__version__,
        "python": platform.python_version(),
        "tensorflow": tensorflow.__version__,
        "keras": keras.__version__,
        "keras_backend": keras.config.backend(),
        "numpy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def write_json(path, value) -> None:
    write_whole(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_table(path):
    """A table of predictions as `write_table` wrote it: names stay text where they look like numbers."""
    import pandas as pd

    return pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False)


def write_table(path, table) -> None:
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def kept_table(path, make):
    """A table of predictions that `make` makes once: it is read where an earlier call has written it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, make())
    return read_table(path)


def exported_once(folder, to, export) -> str:
    """The SavedModel of a run, written by `export(folder, to)` or found as a killed call had left it."""
    note = folder / "work" / "exported.txt"
    if not note.exists() or not Path(note.read_text(encoding="utf-8")).is_dir():
        write_whole(note, str(export(folder, to)))
    return note.read_text(encoding="utf-8")


def _plain(value):
    """JSON values only; an undefined number (the score of a label without films) becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
