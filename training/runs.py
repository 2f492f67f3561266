"""The run folder: what is in it, and how it is opened."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import shutil
from pathlib import Path

from kxray.io.files import replacing, write_whole

_TEXT = (
    *("path", "patient_id", "group", "label", "predicted", "predicted_with_flips"),
    *("coarse", "coarse_predicted", "coarse_predicted_flips"),
)


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


def discard(folder) -> None:
    """Removes what a run that never began has put into its folder."""
    folder = Path(folder)
    for name in ("work", "phantoms"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("config.json", "skipped.csv"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def with_absolute_places(recipe, given) -> tuple:
    """The recipe and the given options with absolute paths: a run can be resumed from another folder."""
    # A word that is no path, such as `--init imagenet` or `--weights none`, stays as it is.
    places = {
        name: str(Path(given[name]).resolve())
        for name in ("data", "corrections", "export", "init", "weights")
        if given.get(name) and given[name] not in ("imagenet", "none")
    }
    return dataclasses.replace(recipe, **places), {**given, **places}


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


def starting_notes(recipe, fingerprint) -> list[str]:
    """What a reader of the scores must know of a run's starting weights."""
    start = getattr(recipe, "init", None) or getattr(recipe, "weights", None)
    spec = Path(start or "", "spec.json")
    if start is None or not spec.is_file():
        return []
    provenance = json.loads(spec.read_text(encoding="utf-8")).get("provenance", {})
    if provenance.get("data_fingerprint") != fingerprint:
        return []
    return [f"the starting weights of {start} were trained on these very films: scores are too good"]


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
