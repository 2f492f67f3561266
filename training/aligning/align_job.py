"""A run of the recipe align: films in, an aligner out that was measured on films of other patients."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from kxray.io.files import replacing
from training import options, runs

TEST_SHARE = 0.2
# How often each held-out film is moved.
_MOVES = 2
_SHOWN = 12


def run(recipe, given) -> Path:
    """Runs the whole job, or goes on with it, and returns the run folder."""
    console = Console(highlight=False, markup=False)
    recipe, given = runs.with_absolute_places(recipe, given)
    if recipe.resume:
        folder, recipe = runs.resumed(recipe, given)
    elif recipe.dry_run:
        return _dry_run(recipe, console)
    else:
        _check(recipe)
        source = Path(recipe.data).resolve().name if recipe.data else "thorax-phantoms"
        folder = runs.create(recipe.out or runs.default_folder("align", source))
        runs.write_json(folder / "config.json", {"recipe": "align", "options": options.as_json(recipe)})
    console.print(f"run folder {folder}", soft_wrap=True)
    if (folder / "metrics.json").exists():
        console.print("this run is complete")
        _tell(console, folder, json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        return folder

    def work(progress):
        return _AlignJob(recipe, folder, progress).run()

    _tell(console, folder, runs.carried_out(folder, recipe.resume, console, work))
    return folder


def _check(recipe):
    """Raises ValueError on options that do not fit each other, before anything is read."""
    if recipe.size % 16:
        raise ValueError(f"--size must be a multiple of 16 pixels, got {recipe.size}")
    if recipe.size > recipe.image_size:
        raise ValueError(
            f"--size {recipe.size} is more than the films' --image-size {recipe.image_size}; the network "
            "looks at a copy, not at an enlargement"
        )


def _dry_run(recipe, console):
    _check(recipe)
    console.print_json(json.dumps({"recipe": "align", "options": options.as_json(recipe)}))
    if recipe.out is not None:
        runs.check_free(recipe.out)
    if recipe.data is None:
        console.print(f"would generate {recipe.phantoms} thorax phantoms")
        return None
    table, problems, notes = _read(recipe)
    frontal = _frontal(table)
    console.print(f"{len(table)} films: {int(frontal.sum())} frontal, {int((~frontal).sum())} lateral")
    for note in [
        *notes,
        *(f"would skip row {row}: {why}" for row, why in problems[["row", "problem"]].values),
    ]:
        console.print(note)
    return None


def _read(recipe):
    """(table of readable rows, problems that were skipped, notes)."""
    from kxray import data

    table = data.read_source(recipe.data, check=False)
    notes = list(table.attrs.get("notes", []))
    problems = data.check_manifest(
        table, views=("frontal", "lateral", "") if "view" in table.columns else None
    )
    if len(problems) and not recipe.skip_bad:
        raise data.ManifestError(problems, recipe.data)
    return data.drop_problems(table, problems).reset_index(drop=True), problems, notes


def _frontal(table):
    """Which films are frontal: those that are not said to be lateral."""
    if "view" not in table.columns:
        return np.ones(len(table), bool)
    return (table["view"] != "lateral").to_numpy()


class _AlignJob:
    def __init__(self, recipe, folder, progress):
        self.recipe, self.folder, self.progress = recipe, folder, progress

    def run(self):
        from training.aligning.fitting import LEAST_FILMS, fit_aligner

        recipe = self.recipe
        started = time.monotonic()
        table, notes = self.films()
        pixels, table = self.decoded(table, notes)
        frontal = _frontal(table)
        if frontal.sum() < 40:
            raise ValueError(
                f"{recipe.data or 'the phantoms'}: {int(frontal.sum())} frontal films are too few to learn "
                "from; an aligner takes 40 and more"
            )
        parts, grouping = self.split(table, frontal, notes)
        for part, least in (("train", LEAST_FILMS), ("test", 1)):
            count = int((frontal & (parts == part)).sum())
            if count < least:
                raise ValueError(
                    f"{recipe.data or 'the phantoms'}: {count} frontal films to {part} on, an aligner takes "
                    f"{least} and more; give films of more patients"
                )
        self.describe(table, frontal, parts, grouping, notes)
        train, test = frontal & (parts == "train"), frontal & (parts == "test")
        read = time.monotonic() - started
        aligner = fit_aligner(
            pixels[train],
            self.folder / "work",
            seed=recipe.seed,
            progress=self.progress,
            groups=grouping.groups[train],
            laterals=pixels[~frontal & (parts == "train")],
            **{name: getattr(recipe, name) for name in ("size", "width", "steps", "epochs")},
            **{name: getattr(recipe, name) for name in ("learning_rate", "template_films", "foreign")},
            films=recipe.batch_size,
        )
        # Of all calls of an interrupted run.
        seconds = read + json.loads((self.folder / "work" / "seconds.json").read_text(encoding="utf-8"))
        scores, shown = self.measure(aligner, pixels[test], pixels[~frontal & (parts == "test")], table[test])
        scores["minutes"] = round(seconds / 60, 2)
        self.leave(aligner, scores, shown)
        return scores

    def films(self):
        """(table, notes): the films of the source, or phantoms; a random part of them where they are many."""
        recipe = self.recipe
        if recipe.data is None:
            from kxray.data import read_manifest
            from kxray.data.phantom import Mix, write_phantoms

            bar = self.progress.add_task("phantom films", total=recipe.phantoms, facts="")
            mix = Mix(size=max(128, min(256, recipe.image_size)), lateral_fraction=0.15, poses=recipe.poses)
            manifest = write_phantoms(
                self.folder / "phantoms",
                "thorax",
                recipe.phantoms,
                recipe.seed,
                mix=mix,
                progress=lambda done: self.progress.update(bar, completed=done),
            )
            table = read_manifest(manifest)
            notes = ["the films are generated phantoms: figures say nothing about real films"]
        else:
            table, problems, notes = _read(recipe)
            if len(problems):
                from kxray import data

                data.write_skipped(problems, self.folder / "skipped.csv")
                notes.append(f"{len(problems)} broken rows were left out; skipped.csv lists them")
        if len(table) > recipe.films:
            rows = np.sort(np.random.default_rng(recipe.seed).permutation(len(table))[: recipe.films])
            notes.append(f"{recipe.films} of {len(table)} films are used, drawn at random")
            table = table.iloc[rows].reset_index(drop=True)
        return table, notes

    def decoded(self, table, notes):
        """(pixels float32 (N, side, side), table of the films that could be read)."""
        from kxray import data
        from kxray.data import pipeline
        from kxray.spec import ModelSpec

        side = self.recipe.image_size
        spec = ModelSpec("aligner", ("frontal", "other"), "binary", (side, side))
        bar = self.progress.add_task("reading films", total=len(table), facts="")
        inputs = pipeline.load_inputs(
            table["path"],
            spec,
            workers=self.recipe.workers,
            on_film=lambda index, _: self.progress.update(bar, completed=index + 1),
        )
        if inputs.errors:
            problems = pd.DataFrame(
                [
                    (index, table["path"][index], "path", f"unreadable film: {error}")
                    for index, error in inputs.errors.items()
                ],
                columns=["row", "path", "column", "problem"],
            )
            if not self.recipe.skip_bad:
                raise data.ManifestError(problems, self.recipe.data)
            data.write_skipped(problems, self.folder / "skipped.csv")
            notes.append(f"{len(problems)} unreadable films were left out; skipped.csv lists them")
        kept = np.setdiff1d(np.arange(len(table)), list(inputs.errors))
        return np.asarray(inputs.pixels)[kept, ..., 0], table.iloc[kept].reset_index(drop=True)

    def split(self, table, frontal, notes):
        """(part of each film, grouping): the source's own test films where frontal ones are, else a fifth.

        Raises:
            ValueError: a synthetic film that would be tested on.
        """
        from kxray import data
        from training.aligning.fitting import LEAST_FILMS

        grouping = data.film_groups(table)
        if "split" in table.columns:
            test = (table["split"] == "test").to_numpy()
            if (frontal & test).any() and (frontal & ~test).sum() >= LEAST_FILMS:
                parts = np.where(test, "test", "train")
                data.check_held_out(table, parts)
                notes.append("the source's own split")
                return parts, grouping
            if test.any():
                notes.append("the source's own split has too few frontal films and is not used")
        view = np.where(frontal, "frontal", "lateral")
        split = data.patient_split(
            table, view, val=0.0, test=TEST_SHARE, seed=self.recipe.seed, grouping=grouping
        )
        notes.extend(split.notes)
        return split.parts, grouping

    def describe(self, table, frontal, parts, grouping, notes):
        """Adds to config.json; a resumed run must find the films it was started on."""
        from kxray import data

        path = self.folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = data.fingerprint(table)
        known = config.get("data_fingerprint", fingerprint)
        if known != fingerprint:
            raise ValueError(
                f"the films are not those this run was started on ({known[:12]}, now {fingerprint[:12]}); "
                "restore them or start a new run"
            )
        self.config = config | {
            "versions": runs.versions(),
            "data_fingerprint": fingerprint,
            "split_hash": data.save_split(table.assign(split=parts), self.folder / "split.csv"),
            "films": {
                part: {
                    "frontal": int((frontal & (parts == part)).sum()),
                    "lateral": int((~frontal & (parts == part)).sum()),
                }
                for part in ("train", "test")
            },
            "grouped_by": grouping.kind,
            "notes": notes,
        }
        runs.write_json(path, self.config)

    def measure(self, aligner, films, laterals, table):
        """(what metrics.json holds, films to show) of held-out frontal films and lateral ones."""
        from training.aligning import residuals

        rng = np.random.default_rng([self.recipe.seed, 29])
        poses, confidences = residuals.found_by(aligner, films)
        motions = [[residuals.random_motion(rng) for _ in films] for _ in range(_MOVES)]
        moved = [
            np.stack([residuals.move(*pair) for pair in zip(films, turn, strict=True)]) for turn in motions
        ]
        found = [residuals.found_by(aligner, turn) for turn in moved]
        accepted = [confidences >= 0.5, *(found_confidence >= 0.5 for _, found_confidence in found)]
        errors = np.concatenate(
            [residuals.pose_errors(poses, turn[0], by) for turn, by in zip(found, motions, strict=True)]
        )
        kinds = residuals.refused_kinds(films, self.recipe.seed)
        if len(laterals):
            kinds["lateral films of the source"] = laterals
        aligned = residuals.aligned(films, poses)
        scores = {
            "held_out_films": len(films),
            "residuals": residuals.summary(errors),
            "accepted": {
                "as_they_are": float(accepted[0].mean()),
                "moved": float(np.mean(np.concatenate(accepted[1:]))),
            },
            "refused": residuals.refusals(aligner, kinds),
            "likeness": {
                "before": residuals.likeness(films),
                "after": residuals.likeness(aligned),
                "moved": residuals.likeness(moved[0]),
                "moved_after": residuals.likeness(residuals.aligned(moved[0], found[0][0])),
            },
        }
        truth = self.true_errors(table, poses)
        if truth is not None:
            scores["against_the_phantoms"] = truth
        chosen = np.linspace(0, len(films) - 1, min(_SHOWN, len(films))).astype(int)
        shown = {
            "films": films[chosen],
            "aligned": aligned[chosen],
            "confidences": confidences[chosen],
            "poses": poses[chosen],
            "means": (films.mean(axis=0), aligned.mean(axis=0)),
            "refused": {name: kind[0] for name, kind in kinds.items()},
        }
        return scores, shown

    def true_errors(self, table, poses):
        """Residuals against the poses that phantoms were drawn in; a patient's own build is part of them."""
        from training.aligning import residuals

        columns = ["rotation", "scale", "shift_x", "shift_y"]
        if self.recipe.data is not None or not set(columns) <= set(table.columns):
            return None
        rows = table[columns].astype(float).to_numpy()
        side = _phantom_side(table)
        motions = [residuals.Similarity(row[0], row[1], (row[2] / side, row[3] / side)) for row in rows]
        # How the template lies beside the generator's upright chest: the median offset is no error.
        upright = [
            residuals.Similarity.from_pose(pose).then(motion.inverse()).pose
            for pose, motion in zip(poses, motions, strict=True)
        ]
        offset = np.median(upright, axis=0)
        return residuals.summary(residuals.pose_errors([offset] * len(poses), poses, motions))

    def leave(self, aligner, scores, shown):
        """Everything a run leaves; metrics.json last: a run that has it is complete."""
        from PIL import Image

        from training.report.align import write_report

        folder = self.folder
        with replacing(folder / "model.keras") as temporary:
            aligner.save(temporary)
        for name in ("template.npz", "history.csv"):
            with replacing(folder / name) as temporary:
                temporary.write_bytes((folder / "work" / name).read_bytes())
        template = aligner.get_layer("align").template.numpy()
        with replacing(folder / "template.png") as temporary:
            Image.fromarray(np.round(255 * np.clip(template, 0, 1)).astype(np.uint8)).save(temporary)
        history = pd.read_csv(folder / "history.csv")
        write_report(folder, self.config, scores, history, template, shown)
        runs.write_json(folder / "metrics.json", scores)


def _phantom_side(table):
    """Manifests give shifts in pixels of the film."""
    from kxray import read_image

    return read_image(table["path"].iloc[0]).pixels.shape[1]


def _tell(console, folder, scores):
    lines = [
        f"residuals on {scores['held_out_films']} held-out films moved by known motions: "
        + ", ".join(
            f"{name} {row['median']:.2f} {row['unit']} (90%: {row['ninety_percent']:.2f})"
            for name, row in scores["residuals"].items()
        ),
        f"accepted: {scores['accepted']['as_they_are']:.1%} of them as they are, "
        f"{scores['accepted']['moved']:.1%} moved",
        "refused: "
        + ", ".join(f"{name} {row['refused']}/{row['films']}" for name, row in scores["refused"].items()),
        f"report {(folder / 'report.html').resolve()}",
    ]
    console.print("\n".join(lines), soft_wrap=True)
