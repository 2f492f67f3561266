"""What boxes and aligned films give a network that looks by masks: before it is trained, and while it is."""

from pathlib import Path

import numpy as np

# As many films say how chests lie; more only cost time.
MOST_ALIGNED_ON = 1000
MOST_LATERALS = 200
_BATCH = 64


class Masking:
    """Aligner, probability masks and boxes of each training, all of them from its own training films.

    Args:
        recipe: its options align ("auto", "none", or a run folder or .keras file), masking ("masks",
            "uniform" or "none"), masks (folder of pictures, or None), box_share, box_loss, seed and
            align_epochs.
    """

    def __init__(self, recipe):
        self.recipe = recipe
        self._films = self._found = None

    def check(self, task, films, rows) -> None:
        """Finds what would end a training, before the first one begins.

        Args:
            task, films: ClassifierTask with its labels, and RunFilms.
            rows: positions of the films of the smallest training.

        Raises:
            ValueError, FileNotFoundError: too few films to align by, a run that is no aligner, or pictures
                that are not masks of the task's diseases.
        """
        from kxray import models
        from kxray.data.masks import DiseaseMasks
        from training.aligning.fitting import LEAST_FILMS

        align, pictures = self.recipe.align, self.recipe.masks
        frontal = len(_by_view(films.table, np.asarray(rows))[0])
        if align == "auto" and frontal < LEAST_FILMS:
            raise ValueError(
                f"--align auto learns from {LEAST_FILMS} frontal training films or more, there are "
                f"{frontal}; give --align none or a run of the recipe align"
            )
        if align not in ("auto", "none"):
            models.load_aligner(align)
        if pictures is not None and self.recipe.masking == "masks":
            DiseaseMasks.uniform(task.labels).with_pictures(pictures)

    def notes(self) -> list[str]:
        """What a reader of the scores should know of how films were aligned."""
        if self.recipe.align in ("auto", "none"):
            return []
        return [f"films were aligned by {self.recipe.align}, which may have seen test films, without labels"]

    def boxes(self, task, films, rows, seed):
        """One box a finding for the loss, float32 (films, L, 4), of the training films that may show theirs.

        Several boxes of a finding on a film are taken together: the smallest box around them.

        Args:
            task, films: ClassifierTask with its labels, and RunFilms.
            rows: positions of the training films.
            seed: of the training; it chooses the films where `box_share` is below 1.

        Returns:
            x, y, width, height in shares of the film's sides, NaN for none. None where boxes do not teach,
            which holds for all trainings of a run alike (`trained`), as they share one compiled network.
        """
        if not self._teach(task, films):
            return None
        boxes = np.full((len(films.inputs), len(task.labels), 4), np.nan, np.float32)
        used = self.used(task, films, rows, seed)
        if len(used):
            ends = used.assign(right=used["x"] + used["width"], bottom=used["y"] + used["height"])
            sides = ends.groupby(["position", "finding"], sort=False).agg(
                {"x": "min", "y": "min", "right": "max", "bottom": "max"}
            )
            x, y, right, bottom = sides.to_numpy(float).T
            positions, names = zip(*sides.index, strict=True)
            labels = [task.labels.index(name) for name in names]
            boxes[list(positions), labels] = np.stack([x, y, right - x, bottom - y], axis=1)
        return boxes

    def _teach(self, task, films):
        return bool(self.recipe.box_loss) and len(self.boxed(task, films)) > 0

    def used(self, task, films, rows, seed):
        """The boxes of `training.localising.boxed_findings` that this training uses."""
        found = self.boxed(task, films)
        mine = found[found["position"].isin(rows)]
        boxed = np.unique(mine["position"])
        count = int(np.ceil(self.recipe.box_share * len(boxed)))
        # The first of one order: more boxes are these and others.
        chosen = np.random.default_rng([seed, 5]).permutation(boxed)[:count]
        return mine[mine["position"].isin(chosen)]

    def trained(self, model, task, films):
        """(the network whose loss is computed, its loss): with its evidence where boxes are to teach it."""
        from training.box_loss import FindingsAndBoxes, with_packed_evidence
        from training.finding_loss import FindingsCrossentropy

        if not self._teach(task, films):
            return model, FindingsCrossentropy()
        whole, size = with_packed_evidence(model)
        return whole, FindingsAndBoxes(len(task.labels), size, self.recipe.box_loss)

    def prepare(self, model, task, films, rows, seed, folder, progress):
        """Gives a network its aligner and its masks, made of the training films alone, or found in `folder`.

        Args:
            model: with its starting weights.
            task, films: ClassifierTask with its labels, and RunFilms.
            rows: positions of the training films.
            seed: of the training.
            folder: of the training; it keeps `aligner` and `masks`.
            progress: rich progress with a `facts` field.
        """
        from kxray import models
        from kxray.data.masks import DiseaseMasks

        folder, regions = Path(folder), None
        if self.recipe.align != "none":
            place = self.aligner(task, films, rows, seed, folder / "aligner", progress)
            models.copy_aligner(models.load_aligner(place), model)
            regions = _regions(Path(place))
        if self.recipe.masking != "masks":
            return
        if (folder / "masks" / "masks.npz").is_file():
            # What a training began with, whatever was done to boxes or pictures since.
            masks = DiseaseMasks.load(folder / "masks")
        else:
            masks = self.masks(model, task, films, rows, seed, regions)
            masks.save(folder / "masks")
        models.set_masks(model, masks)

    def keep_masks(self, folder, run):
        """Copies the masks of a training to RUN/masks, and draws them; None where it has none.

        The template of its aligner goes to RUN/template.npz, where `--align RUN` finds it.

        Args:
            folder: of the training.
            run: run folder.
        """
        from kxray.data.masks import DiseaseMasks
        from training.report.mask_plots import disease_mask_panels

        folder = Path(folder)
        places = {"auto": folder / "aligner", "none": folder}
        template = _template(places.get(self.recipe.align, Path(self.recipe.align)))
        if template is not None:
            template.save(Path(run) / "template.npz")
        if not (folder / "masks").is_dir():
            return None
        masks = DiseaseMasks.load(folder / "masks")
        masks.save(Path(run) / "masks")
        return disease_mask_panels(masks, None if template is None else template.pixels)

    def masks(self, model, task, films, rows, seed, regions=None):
        """`kxray.data.masks.DiseaseMasks` from the boxes of one training, in the frame of its aligner."""
        from kxray.data.masks import disease_masks

        placed = self._aligned(model, films, self.used(task, films, rows, seed), task.image_size)
        masks = disease_masks(task.labels, placed, regions=regions)
        return masks if self.recipe.masks is None else masks.with_pictures(self.recipe.masks)

    def aligner(self, task, films, rows, seed, folder, progress):
        """Where a training's aligner is; with `auto` it is trained, or found as an earlier call left it."""
        from training.aligning import fit_aligner

        if self.recipe.align != "auto":
            return Path(self.recipe.align)
        if not (folder / "model.keras").is_file():
            frontal, lateral = _by_view(films.table, np.asarray(rows))
            few = np.sort(np.random.default_rng([seed, 6]).permutation(frontal)[:MOST_ALIGNED_ON])
            others = np.sort(np.random.default_rng([seed, 8]).permutation(lateral)[:MOST_LATERALS])
            pixels = np.concatenate(list(films.inputs.batches(few, _BATCH)))
            laterals = None
            if len(others):
                laterals = np.concatenate(list(films.inputs.batches(others, _BATCH)))[..., 0]
            chosen = films.table.loc[few]
            fit_aligner(
                pixels,
                folder,
                seed=seed,
                image_size=task.image_size,
                progress=progress,
                groups=chosen["patient_id"].where(chosen["patient_id"] != "", chosen["path"]).to_numpy(),
                laterals=laterals,
                epochs=self.recipe.align_epochs,
            )
        return folder

    def _aligned(self, model, films, used, image_size):
        """List of (finding, corners (4, 2)) of boxes in aligned coordinates, shares of the width."""
        from kxray.data.similarity import Similarity, box_quad, to_shares

        positions = np.unique(used["position"])
        poses = dict(zip(positions.tolist(), self._poses(model, films, positions), strict=True))
        height, width = image_size
        placed = []
        for box in used.to_dict("records"):
            pose = poses[box["position"]]
            if pose is not None:
                sides = {"x": width, "y": height, "width": width, "height": height}
                corners = box_quad({name: box[name] * side for name, side in sides.items()})
                back = Similarity.from_pose(pose).inverse()
                placed.append((box["finding"], back.apply(to_shares(corners, image_size))))
        return placed

    def _poses(self, model, films, positions):
        """The pose (4,) of each film as the network's aligner sees it; None where it refuses the film."""
        if "align" not in [layer.name for layer in model.layers]:
            return [np.zeros(4, np.float32)] * len(positions)
        align, poses = model.get_layer("align"), []
        for pixels in films.inputs.batches(positions, _BATCH):
            found, confidence = (np.asarray(part) for part in align.localise(pixels))
            poses += [pose if sure >= 0.5 else None for pose, sure in zip(found, confidence, strict=True)]
        return poses

    def boxed(self, task, films, rows=None):
        """What `training.localising.boxed_findings` says of all films, or of some positions; found once."""
        from training.localising import boxed_findings

        if self._films is not films:
            # Of all films, once; which of them a training may use, it says itself.
            table = films.table
            boxed = table.index[table["boxes"].map(bool)] if "boxes" in table.columns else []
            self._films, self._found = films, boxed_findings(task, films, boxed)
        if rows is None:
            return self._found
        return self._found[self._found["position"].isin(rows)].reset_index(drop=True)


def _by_view(table, rows):
    """(rows of films that are to be aligned, rows of those that the source says are lateral)."""
    if "view" not in table.columns:
        return rows, rows[:0]
    lateral = (table.loc[rows, "view"] == "lateral").to_numpy()
    return rows[~lateral], rows[lateral]


def _regions(place):
    """Lungs and heart of an aligner's template, or None where there is no template."""
    from kxray.data.registration import template_regions

    template = _template(place)
    return None if template is None else template_regions(template)


def _template(place):
    """The `kxray.data.registration.Template` that an aligner was trained to, or None where it kept none."""
    from kxray.data.registration import Template

    path = (place if place.is_dir() else place.parent) / "template.npz"
    return Template.load(path) if path.is_file() else None
