"""Where each disease is likely to be in an aligned chest film: from boxes, from anatomy, or both.

Maps lie in the aligned frame of `kxray.data.similarity`: coordinates in shares of its width, the origin in
its middle, x right, y down; the patient's right lies at the left.
"""

import dataclasses
import difflib
import json
import re
from pathlib import Path

import numpy as np

from kxray.data.mask_priors import disease_prior, smooth, stretched, to_one, without_side
from kxray.io.files import read_npz, replacing, write_whole


@dataclasses.dataclass(frozen=True, eq=False)
class DiseaseMasks:
    """One probability map a disease, in aligned coordinates.

    Attributes:
        labels: the L diseases.
        maps: float32 (L, m, m) in [0, 1], 1 at the likeliest place of each.
        sources: how each map was made, as "12 boxes, prior weight 0.45".
        counts: number of boxes in each.

    Raises:
        ValueError: parts that do not fit each other, or maps that are not as above.
    """

    labels: tuple
    maps: np.ndarray
    sources: tuple
    counts: tuple

    def __post_init__(self):
        labels = _label_names(self.labels)
        maps = np.asarray(self.maps, np.float32)
        if maps.ndim != 3 or maps.shape[0] != len(labels) or maps.shape[1] != maps.shape[2] or not maps.size:
            raise ValueError(f"expected masks ({len(labels)}, m, m), one a disease, got {maps.shape}")
        if not (len(self.sources) == len(self.counts) == len(labels)):
            raise ValueError(
                f"expected a source and a count for each of {len(labels)} diseases, got "
                f"{len(self.sources)} and {len(self.counts)}"
            )
        for label, values in zip(labels, maps, strict=True):
            if not (values.min() >= 0 and abs(values.max() - 1) < 1e-5):
                raise ValueError(
                    f"the mask of {label} must lie in [0, 1] and reach 1, got {values.min():g} to "
                    f"{values.max():g}"
                )
        for name, value in (
            ("labels", labels),
            ("maps", maps),
            ("sources", tuple(map(str, self.sources))),
            ("counts", tuple(map(int, self.counts))),
        ):
            object.__setattr__(self, name, value)

    @property
    def size(self) -> int:
        """Height and width of the maps."""
        return self.maps.shape[1]

    @classmethod
    def uniform(cls, labels, size=64):
        """Every place as likely as any other: what masks are compared with."""
        labels = _label_names(labels)
        ones = np.ones((len(labels), size, size), np.float32)
        return cls(labels, ones, ("uniform",) * len(labels), (0,) * len(labels))

    def select(self, labels):
        """The masks of `labels`, in that order; ValueError where one has none."""
        missing = [label for label in labels if label not in self.labels]
        if missing:
            raise ValueError(
                f"no mask for {', '.join(map(repr, missing))}; there are masks for {', '.join(self.labels)}"
            )
        places = [self.labels.index(label) for label in labels]
        return DiseaseMasks(
            tuple(labels),
            self.maps[places],
            tuple(self.sources[place] for place in places),
            tuple(self.counts[place] for place in places),
        )

    def save(self, folder) -> None:
        """Writes masks.npz, masks.json (what each is made of) and one 16-bit grey PNG a disease.

        A picture that is changed afterwards takes its mask's place in `load`.
        """
        from kxray.io import write_png16

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = []
        for label, values, source, count in zip(
            self.labels, self.maps, self.sources, self.counts, strict=True
        ):
            write_png16(folder / picture_name(label), np.clip(values, 0, 1))
            described.append(
                {"disease": label, "boxes": count, "source": source, "picture": picture_name(label)}
            )
        write_whole(folder / "masks.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n")
        # Last: where a save is cut off, `load` finds no masks, or pictures that differ and hold the new ones.
        with replacing(folder / "masks.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file, labels=self.labels, maps=self.maps, sources=self.sources, counts=self.counts
            )

    @classmethod
    def load(cls, folder):
        """Reads what `save` wrote; a PNG of a disease's name that was changed since replaces its mask.

        Raises:
            ValueError: no masks.npz, a damaged one, or a picture that `with_pictures` refuses.
        """
        path = Path(folder) / "masks.npz"
        if not path.is_file():
            raise ValueError(f"{folder}: no masks.npz; expected a folder that DiseaseMasks.save wrote")
        parts = read_npz(path, ("labels", "maps", "sources", "counts"), "set of disease masks")
        columns = [np.atleast_1d(parts[name]) for name in ("labels", "sources", "counts")]
        if any(column.ndim != 1 for column in columns) or columns[2].dtype.kind not in "iu":
            raise ValueError(f"{path}: not a readable set of disease masks (no list of each); make it again")
        labels, sources, counts = (tuple(column.tolist()) for column in columns)
        masks = cls(labels, parts["maps"], sources, counts)
        return _replaced(masks, _pictures(folder, masks.labels))

    def with_pictures(self, folder):
        """The masks with those that `folder` has a picture of replaced.

        Args:
            folder: holds grey PNGs of 8 or 16 bits named like the disease ("Effusion.png"; "_" for what is
                no letter, digit, "-" or "."; in any case), of any size, white where it is likely. They are
                stretched to the masks' size and divided by their largest value.

        Raises:
            ValueError: no picture of any disease, a name that is nearly a disease's, a picture that is not
                grey or that is black.
        """
        found = _pictures(folder, self.labels)
        if not found:
            raise ValueError(
                f"{folder}: no picture of a disease; expected PNGs named "
                f"{', '.join(map(picture_name, self.labels))}"
            )
        return _replaced(self, found)


def disease_masks(labels, boxes, *, regions=None, size=64, strength=10.0, smoothing=0.1, mirrored=None):
    """Probability maps from the boxes of the training split, shrunk towards anatomy where they are few.

    The occupancy of a disease is the share of its n boxes that cover a place, each box together with its
    mirror image where the disease has no side, smoothed by a Gaussian and divided by its largest value. The
    mask is w * prior + (1 - w) * occupancy, w = strength / (strength + n), again divided by its largest.

    Args:
        labels: the L diseases.
        boxes: list of (label, quad): the corners (4, 2) in aligned coordinates, shares of the width. Boxes of
            other labels and boxes outside the frame are left out.
        regions: dict of bool (s, s): right_lung, left_lung and heart of the template; None, or where one of
            them is empty: `kxray.data.chest_regions`.
        size: m, height and width of the maps.
        strength: number of boxes that count as much as the prior; above 0.
        smoothing: standard deviation of the Gaussian for one box, in shares of the width; 0 for none. It
            narrows as n**(-1/6) (Scott, 1992, for densities in the plane).
        mirrored: the diseases without a side; None: all but those of the heart.

    Returns:
        DiseaseMasks.

    Raises:
        ValueError: numbers out of range, a box that is not (4, 2), or regions that are not as above.
    """
    labels = _label_names(labels)
    if not (size >= 1 and strength > 0 and smoothing >= 0):
        raise ValueError(
            "disease masks need a size of at least 1, a strength above 0 and a smoothing of 0 or more, got "
            f"size={size}, strength={strength}, smoothing={smoothing}"
        )
    mirrored = without_side(labels) if mirrored is None else tuple(mirrored)
    anatomy = "built-in regions" if regions is None else "the template"
    if regions is not None and not all(np.any(region) for region in regions.values()):
        regions, anatomy = None, "built-in regions, as the template shows no lungs"
    maps, sources, counts = [], [], []
    for label in labels:
        prior = disease_prior(label, regions, size)
        covered = [box_cover(quad, size) for name, quad in boxes if name == label]
        covered = np.array([cover for cover in covered if cover.any()], bool).reshape(-1, size, size)
        number = len(covered)
        if number:
            if label in mirrored:
                covered = covered | covered[:, :, ::-1]
            occupancy = smooth(covered.mean(axis=0), smoothing * number ** (-1 / 6))
            weight = strength / (strength + number)
            maps.append(_mixed(prior, occupancy, weight))
            sources.append(f"{number} box{'es' * (number > 1)}, prior weight {weight:.2f}")
        else:
            maps.append(prior)
            sources.append(f"no boxes, prior of {anatomy}")
        counts.append(number)
    return DiseaseMasks(labels, np.stack(maps), tuple(sources), tuple(counts))


def maps_from_model(masks, evidence, *, strength=50.0, smoothing=0.02, mirrored=None):
    """Replaces the masks of diseases without boxes by where a first model sees them.

    The positive part of each film's map is divided by its largest value, so that every film counts the same;
    their mean, with its mirror image where the disease has no side, is smoothed and mixed with the mask that
    is there, the prior, as in `disease_masks` with n films in place of boxes.

    Args:
        masks: DiseaseMasks; those made of boxes and those of pictures stay.
        evidence: {label: float (N, h, w)}, aligned class activation or evidence maps of training films that
            have the disease. Films without a positive value are left out.
        strength: number of films that count as much as the prior. A model's map is a guess, so it is larger
            than that of boxes.
        smoothing: standard deviation in shares of the width.
        mirrored: the diseases without a side; None: all but those of the heart.

    Returns:
        DiseaseMasks, `sources` saying which are a model's.

    Raises:
        ValueError: a label without a mask, or maps that are not finite (N, h, w).
    """
    masks.select(evidence)
    if not (strength > 0 and smoothing >= 0):
        raise ValueError(
            f"expected a strength above 0 and a smoothing of 0 or more, got {strength} and {smoothing}"
        )
    mirrored = without_side(masks.labels) if mirrored is None else tuple(mirrored)
    maps, sources = masks.maps.copy(), list(masks.sources)
    for index, label in enumerate(masks.labels):
        if masks.counts[index] or label not in evidence or sources[index].startswith("picture "):
            continue
        seen = np.asarray(evidence[label], np.float32)
        if seen.ndim != 3 or not np.isfinite(seen).all():
            raise ValueError(f"expected finite maps (N, h, w) of {label}, got {seen.shape}")
        seen = np.maximum(seen, 0)
        seen = seen[seen.any(axis=(1, 2))]
        if len(seen):
            mean = (seen / seen.max(axis=(1, 2), keepdims=True)).mean(axis=0)
            if label in mirrored:
                mean = (mean + mean[:, ::-1]) / 2
            weight = strength / (strength + len(seen))
            maps[index] = _mixed(maps[index], smooth(stretched(mean, masks.size), smoothing), weight)
            sources[index] = f"a first model's maps of {len(seen)} films, prior weight {weight:.2f}"
    return DiseaseMasks(masks.labels, maps, tuple(sources), masks.counts)


def box_cover(quad, size) -> np.ndarray:
    """The pixels of a (size, size) grid whose middle lies in a box; at least the one around the box's middle.

    Args:
        quad: corners (4, 2) in aligned coordinates, shares of the width.
        size: of the grid.

    Returns:
        bool (size, size), empty for a box outside the frame.
    """
    from skimage.draw import polygon2mask

    corners = np.asarray(quad, float)
    if corners.shape != (4, 2) or not np.isfinite(corners).all():
        raise ValueError(f"expected the four corners (4, 2) of a box, got {np.asarray(quad).tolist()}")
    x, y = ((corners + 0.5) * size).T
    cover = polygon2mask((size, size), np.stack([y - 0.5, x - 0.5], axis=1))
    row, column = int(np.floor(y.mean())), int(np.floor(x.mean()))
    if not cover.any() and 0 <= row < size and 0 <= column < size:
        cover[row, column] = True
    return cover


def picture_name(label) -> str:
    """The file name of a disease's mask: "Pleural Effusion" is Pleural_Effusion.png."""
    return re.sub(r"[^\w.-]", "_", label) + ".png"


def _label_names(labels):
    labels = tuple(labels) if not isinstance(labels, str) else (labels,)
    if not labels or not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"expected the names of diseases, got {labels!r}")
    if len({picture_name(label).lower() for label in labels}) < len(labels):
        raise ValueError(f"expected diseases of different names, got {', '.join(labels)}")
    return labels


def _mixed(prior, likely, weight):
    return to_one(weight * prior + (1 - weight) * to_one(likely))


def _pictures(folder, labels):
    """{label: path} of the PNGs in a folder that are named like diseases."""
    names = {picture_name(label)[: -len(".png")].lower(): label for label in labels}
    found = {}
    files = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    for path in files:
        if path.suffix.lower() != ".png" or path.name.startswith("."):
            continue
        stem = re.sub(r"[^\w.-]", "_", path.stem).lower()
        if stem not in names:
            near = difflib.get_close_matches(stem, names, n=1, cutoff=0.85)
            if near:
                raise ValueError(
                    f"{path}: no disease of that name; did you mean {picture_name(names[near[0]])}?"
                )
            continue
        if names[stem] in found:
            raise ValueError(f"{path}: a second picture of {names[stem]}, beside {found[names[stem]].name}")
        found[names[stem]] = path
    return found


def _replaced(masks, pictures):
    """The masks with pictures in their place, except where a picture is just what was saved of its mask."""
    from kxray.io import read_image

    maps, sources, counts = masks.maps.copy(), list(masks.sources), list(masks.counts)
    for label, path in pictures.items():
        index = masks.labels.index(label)
        drawn = read_image(path).pixels
        if drawn.shape == maps[index].shape and (np.abs(drawn - maps[index]) < 1 / 65535).all():
            continue
        if not drawn.any():
            raise ValueError(f"{path}: a black mask, which hides {label} everywhere; paint its places white")
        maps[index] = to_one(stretched(drawn, masks.size))
        sources[index] = f"picture {path.name}, {drawn.shape[1]} x {drawn.shape[0]} pixels"
        counts[index] = 0
    return DiseaseMasks(masks.labels, maps, tuple(sources), tuple(counts))
