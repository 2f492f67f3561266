"""How far a classifier gets that sees no anatomy, way by way: grey values, border, file, sharpness, frame.

A network takes whatever tells the classes of its training films apart (Geirhos et al., 2020). What these
classifiers reach on held-out films is there for the taking; a network's score on the same films is anatomy
only as far as it is above theirs.
"""

import dataclasses
import os
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from kxray.data import audit
from kxray.data.markers import Marker, find_markers

GRID = 16
# Cells of the grid that stay at each side when the centre is blanked out: an eighth of the side.
FRAME_CELLS = 2
LIKELY_SKILL, POSSIBLE_SKILL = 0.8, 0.3
EXPLAINED_SHARE = 0.9
SHOWN_AS = {
    "histogram": "a histogram alone",
    "border": "the border strip alone",
    "header": "the file's header and size alone",
    "sharpness": "sharpness (with noise) alone",
    "centre_blanked": "the film with its centre blanked out",
    "all": "everything but the anatomy together",
}
SCORES = ("accuracy", "balanced_accuracy", "auroc")
_FRAME = np.ones((GRID, GRID), bool)
_FRAME[FRAME_CELLS:-FRAME_CELLS, FRAME_CELLS:-FRAME_CELLS] = False
_WORDS = ("format", "compression", "stored_as", "photometric", "manufacturer", "modality")
HEADER_NAMES = (*_WORDS, "bits", "height", "width", "aspect", "file_bytes", "bytes_a_pixel", "orientation")
HEADER_NAMES += ("spacing",)


@dataclasses.dataclass(frozen=True)
class ShortcutScan:
    """One reading of every film, for the audit.

    Attributes:
        thumbnails: uint8 (N, 32, 32), see `kxray.data.audit.thumbnail`.
        features: "histogram", "border", "header", "sharpness", "centre_blanked" and "all" -> float32 (N, F);
            NaN where a film could not be read.
        headers: a dict a film of what its file says (see `header_facts`); empty where it could not be read.
        brightness: float32 (N,), the mean grey value.
        markers: tuple of `Marker` a film.
        errors: row position to the reason why that film could not be read.
    """

    thumbnails: np.ndarray
    features: dict[str, np.ndarray]
    headers: list[dict]
    brightness: np.ndarray
    markers: list[tuple[Marker, ...]]
    errors: dict[int, str]

    def take(self, rows) -> "ShortcutScan":
        """The scan of some films, by position; errors are left out."""
        rows = np.asarray(rows)
        return ShortcutScan(
            self.thumbnails[rows],
            {name: features[rows] for name, features in self.features.items()},
            [self.headers[row] for row in rows],
            self.brightness[rows],
            [self.markers[row] for row in rows],
            {},
        )


def scan_shortcuts(
    paths: Sequence, *, workers: int | None = None, progress: Callable | None = None
) -> ShortcutScan:
    """Reads every film once, in a stream, and keeps what a classifier without anatomy may see of it.

    Args:
        paths: films of any mix of formats.
        workers: as in `kxray.io.parallel.read_films`.
        progress: called with the number of films done so far.
    """
    from kxray.io.parallel import read_films

    paths, errors = list(paths), {}
    side = audit.THUMBNAIL_SIDE
    thumbnails = np.zeros((len(paths), side, side), np.uint8)
    anatomy_free = np.full((len(paths), len(audit.FEATURE_NAMES)), np.nan, np.float32)
    frames = np.full((len(paths), 2 * int(_FRAME.sum())), np.nan, np.float32)
    header = np.full((len(paths), len(HEADER_NAMES)), np.nan, np.float32)
    headers, markers = [{} for _ in paths], [() for _ in paths]
    for index, result in read_films(paths, transform=_look, workers=workers):
        if isinstance(result, Exception):
            errors[index] = str(result)
        else:
            thumbnails[index], anatomy_free[index], frames[index], facts, found = result
            facts["file_bytes"] = _file_bytes(paths[index])
            headers[index], header[index], markers[index] = facts, _header_numbers(facts), tuple(found)
        if progress is not None:
            progress(index + 1)
    features = {
        "histogram": anatomy_free[:, audit.FEATURE_GROUPS["histogram"]],
        "border": anatomy_free[:, audit.FEATURE_GROUPS["border"]],
        "header": header,
        "sharpness": anatomy_free[:, audit.FEATURE_GROUPS["sharpness"]],
        "centre_blanked": frames,
    }
    features["all"] = np.concatenate(list(features.values()), axis=1)
    brightness = anatomy_free[:, audit.FEATURE_NAMES.index("grey_mean")]
    return ShortcutScan(thumbnails, features, headers, brightness, markers, errors)


def frame_features(pixels: np.ndarray) -> np.ndarray:
    """The film with its centre blanked out: mean and spread of the outer cells of a 16 x 16 grid.

    Args:
        pixels: float (H, W) in [0, 1].

    Returns:
        float32 (224,): the means, then the standard deviations, of the 112 cells within an eighth of a side
        of the border.
    """
    pixels = np.asarray(pixels, np.float32)
    mean, squares = (
        np.asarray(Image.fromarray(image).resize((GRID, GRID), Image.Resampling.BOX))
        for image in (pixels, pixels * pixels)
    )
    spread = np.sqrt(np.maximum(squares - mean * mean, 0))
    return np.concatenate([mean[_FRAME], spread[_FRAME]]).astype(np.float32)


def header_facts(film) -> dict:
    """What the file of a `kxray.Film` says of itself, without its pixels: texts, and numbers for the rest."""
    facts = film.facts
    height, width = film.pixels.shape
    spacing = facts.get("pixel_spacing") or [-1.0]
    kind = facts.get("transfer_syntax") or facts.get("compression") or facts.get("jpeg_process") or ""
    return {
        "format": str(facts.get("source_format", "")),
        "compression": str(kind),
        "stored_as": str(facts.get("stored_as", "")),
        "photometric": str(facts.get("photometric_interpretation", "")),
        "manufacturer": str(facts.get("manufacturer", "")),
        "modality": str(facts.get("modality", "")),
        "bits": int(film.bits),
        "height": height,
        "width": width,
        "orientation": int(facts.get("exif_orientation") or facts.get("orientation") or 1),
        "spacing": float(spacing[0]),
    }


def header_properties(scan: ShortcutScan) -> dict[str, np.ndarray]:
    """Properties of few values that the files give away, for `association`: name to str (N,).

    format, compression, bit depth, size (height x width; thirds of the area where there are many sizes),
    aspect and exposure (thirds of the mean grey value), photometric interpretation, manufacturer, modality.
    """
    from kxray.data.associations import MOST_VALUES, thirds

    headers = scan.headers
    shapes = np.array([[facts["height"], facts["width"]] for facts in headers], float).reshape(-1, 2)
    sizes = np.array([f"{int(height)} x {int(width)}" for height, width in shapes])
    if len(np.unique(sizes)) > MOST_VALUES:
        sizes = np.char.add(thirds(shapes.prod(axis=1) / 1e6), " megapixels")
    found = {
        "format": np.array([facts["format"] for facts in headers]),
        "compression": np.array([facts["compression"] or "unknown" for facts in headers]),
        "bit depth": np.array([str(facts["bits"]) for facts in headers]),
        "size": sizes,
        "aspect": thirds(np.round(shapes[:, 1] / shapes[:, 0], 2)),
        "bytes a pixel": thirds([facts["file_bytes"] for facts in headers] / shapes.prod(axis=1)),
        "exposure": thirds(scan.brightness),
    }
    for name in ("stored_as", "photometric", "manufacturer", "modality"):
        found[name.replace("_", " ")] = np.array([facts[name] or "unknown" for facts in headers])
    return {name: values for name, values in found.items() if len(np.unique(values)) > 1}


def shortcut_scores(
    features: dict[str, np.ndarray],
    labels: np.ndarray,
    folds: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int = 0,
    trees: int = 300,
    progress: Callable | None = None,
) -> dict[str, dict]:
    """Cross-validated scores of a random forest on each kind of features, with 95% intervals.

    Trees need no scaling, so nothing is fitted but the forest, on the films of the other folds alone.

    Args:
        features: name to float (N, F), from `scan_shortcuts`.
        labels: (N,) class of each film, of two or more classes.
        folds: int (N,), from `kxray.data.patient_folds`.
        groups: (N,) patient of each film, whole in one fold; resampled for the intervals.
        seed, trees: of the forests.
        progress: called with the number of kinds done so far.

    Returns:
        name -> `kxray.metrics.classification_scores`: accuracy, balanced_accuracy and auroc, each {value,
        low, high}, recall by class and confusion.
    """
    from kxray.metrics import classification_scores

    labels = np.asarray(labels).astype(str)
    names, positions = np.unique(labels, return_inverse=True)
    found = {}
    for done, (name, columns) in enumerate(features.items(), start=1):
        probabilities = audit.no_anatomy_baseline(columns, labels, folds, seed=seed, trees=trees)
        found[name] = classification_scores(
            positions.reshape(-1), probabilities, groups, [str(label) for label in names], seed=seed
        )
        if progress is not None:
            progress(done)
    return found


def chance_scores(labels: np.ndarray) -> dict[str, float]:
    """What always answering the most frequent class gets: accuracy, balanced_accuracy and auroc."""
    counts = np.unique(np.asarray(labels).astype(str), return_counts=True)[1]
    return {
        "accuracy": float(counts.max() / counts.sum()),
        "balanced_accuracy": 1 / len(counts),
        "auroc": 0.5,
    }


def skill(balanced_accuracy: float, num_labels: int) -> float:
    """How much of the way from chance (0) to perfect (1) a balanced accuracy is (Cohen, 1960, with equal
    classes); below 0 it is worse than chance."""
    chance = 1 / num_labels
    return (balanced_accuracy - chance) / (1 - chance)


def _look(film):
    pixels = film.pixels
    return (
        audit.thumbnail(pixels),
        audit.no_anatomy_features(pixels),
        frame_features(pixels),
        header_facts(film),
        find_markers(pixels),
    )


def _file_bytes(path) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, TypeError, ValueError):
        return -1


def _header_numbers(facts):
    """Words as numbers that depend on nothing but the word, so that no film's number depends on another's."""
    pixels = facts["height"] * facts["width"]
    words = [zlib.crc32(facts[name].encode("utf-8", "replace")) % 9973 for name in _WORDS]
    numbers = [facts["bits"], facts["height"], facts["width"], facts["width"] / facts["height"]]
    numbers += [facts["file_bytes"], facts["file_bytes"] / pixels, facts["orientation"], facts["spacing"]]
    return np.array([*words, *numbers], np.float32)
