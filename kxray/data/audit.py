"""What can be known about a set of films before anyone believes a score.

Duplicate and near-duplicate films, a fingerprint of the data, and how far a classifier gets that sees no
anatomy.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

THUMBNAIL_SIDE = 32
HASH_BITS = 64
MOST_HASH_BITS_APART = 8
LEAST_CORRELATION = 0.92
_BANDS = ((0, 13), (13, 26), (26, 39), (39, 52), (52, 64))
_PAIRS_AT_ONCE = 4_000_000

GREY_BINS = 32
BORDER_FRACTION = 0.04


@dataclasses.dataclass(frozen=True)
class FilmScan:
    """One reading of every film.

    Attributes:
        thumbnails: uint8 (N, 32, 32), stretched to 0..255; zeros where a film could not be read.
        features: float32 (N, F), see `no_anatomy_features`; NaN where a film could not be read.
        errors: row position to the reason why that film could not be read.
    """

    thumbnails: np.ndarray
    features: np.ndarray
    errors: dict[int, str]


def scan_films(paths: Sequence, *, workers: int | None = None) -> FilmScan:
    """Reads every film once, in parallel, and keeps a thumbnail and the no-anatomy features of each."""
    from kxray.io.parallel import read_films

    thumbnails = np.zeros((len(paths), THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
    features = np.full((len(paths), len(FEATURE_NAMES)), np.nan, np.float32)
    errors = {}
    for index, result in read_films(list(paths), transform=_summarise, workers=workers):
        if isinstance(result, Exception):
            errors[index] = str(result)
        else:
            thumbnails[index], features[index] = result
    return FilmScan(thumbnails, features, errors)


def _summarise(film):
    return thumbnail(film.pixels), no_anatomy_features(film.pixels)


# Duplicates


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """A film (H, W) of any float range as uint8 (32, 32), antialiased and stretched to 0..255."""
    side = THUMBNAIL_SIDE
    small = Image.fromarray(np.asarray(pixels, np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    small = np.array(small, np.float32)
    small -= small.min()
    return np.round(small * (255 / max(float(small.max()), 1e-6))).astype(np.uint8)


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """64-bit hash of thumbnails (N, 32, 32) -> uint64 (N,): which low frequencies exceed their median.

    The discrete cosine hash of Zauner (2010, section 3.2.1). It bears rescaling, other aspect ratios,
    recompression, noise and changes of brightness and contrast; not cropping beyond 2% or rotation beyond 1
    degree.
    """
    spectrum = dctn(np.asarray(thumbnails, np.float32), axes=(1, 2), norm="ortho")
    low = spectrum[:, :9, :9].reshape(len(spectrum), -1)[:, 1 : 1 + HASH_BITS]
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def near_duplicate_pairs(
    thumbnails: np.ndarray, *, least_correlation: float = LEAST_CORRELATION
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of films that show the same picture.

    Candidates are hashes at most 8 bits apart. Two such hashes, cut into 5 bands, differ by at most one bit
    in some band, so a look-up of every band and its one-bit neighbours finds them all without comparing all
    pairs (multi-index hashing, Norouzi et al., 2012). The correlation of the thumbnails, less their blurred
    selves, decides: chest films of different people resemble each other in the large.

    Args:
        thumbnails: uint8 (N, 32, 32), from `thumbnail`. Blank ones match nothing.
        least_correlation: in [-1, 1]. Films of different patients stay below about 0.9 (NIH, 691 films).

    Returns:
        int64 (P, 2) positions, first < second, sorted; float32 (P,) correlations.
    """
    thumbnails = np.asarray(thumbnails)
    if thumbnails.ndim != 3 or thumbnails.shape[1:] != (THUMBNAIL_SIDE, THUMBNAIL_SIDE):
        raise ValueError(f"expected thumbnails (N, 32, 32), got {thumbnails.shape}")
    seen = np.flatnonzero(thumbnails.any(axis=(1, 2)))
    if len(seen) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    hashes = perceptual_hash(thumbnails[seen])
    candidates = np.concatenate([_pairs_in_band(hashes, *band) for band in _BANDS])
    candidates = seen[np.unique(candidates, axis=0)]
    correlations = _fine_correlations(thumbnails, candidates)
    keep = correlations >= least_correlation
    return candidates[keep], correlations[keep]


def near_duplicate_groups(
    thumbnails: np.ndarray, *, least_correlation: float = LEAST_CORRELATION
) -> np.ndarray:
    """Group number of every film, int (N,): films joined by a chain of near-duplicate pairs share one."""
    pairs, _ = near_duplicate_pairs(thumbnails, least_correlation=least_correlation)
    return join_pairs(pairs, len(thumbnails))


def exact_duplicate_groups(paths: Sequence) -> np.ndarray:
    """Group number of every film, int (N,): files with the same bytes share one."""
    return np.unique(file_digests(paths), return_inverse=True)[1].reshape(-1)


def join_pairs(pairs: np.ndarray, count: int) -> np.ndarray:
    """Connected components, int (count,), of the graph whose edges are `pairs` (P, 2)."""
    ones = np.ones(len(pairs), bool)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _pairs_in_band(hashes, start, stop):
    band = (hashes >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
    order = np.argsort(band, kind="stable")
    sorted_band = band[order]
    found = [np.zeros((0, 2), np.int64)]
    for flip in (0, *(1 << bit for bit in range(stop - start))):
        wanted = band ^ np.uint64(flip)
        first = np.searchsorted(sorted_band, wanted, side="left")
        sizes = np.searchsorted(sorted_band, wanted, side="right") - first
        # Slices of hashes whose partners fit in memory together; a crowded bucket only makes them shorter.
        slices = np.cumsum(sizes) // _PAIRS_AT_ONCE
        for at in np.split(np.arange(len(hashes)), np.flatnonzero(np.diff(slices)) + 1):
            left = np.repeat(at, sizes[at])
            ends = np.cumsum(sizes[at])
            within = np.arange(len(left)) - np.repeat(ends - sizes[at], sizes[at])
            right = order[np.repeat(first[at], sizes[at]) + within]
            keep = left < right
            left, right = left[keep], right[keep]
            near = _bits_apart(hashes[left], hashes[right]) <= MOST_HASH_BITS_APART
            found.append(np.stack([left[near], right[near]], axis=1))
    return np.concatenate(found)


def _bits_apart(left, right):
    # numpy 1.26 has no bitwise_count: the classic sum of ever wider neighbours.
    x = left ^ right
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _fine_correlations(thumbnails, pairs):
    result = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), 4096):
        block = pairs[start : start + 4096]
        films, inverse = np.unique(block, return_inverse=True)
        small = thumbnails[films].astype(np.float32)
        fine = small - ndimage.gaussian_filter(small, sigma=(0, 3, 3))
        fine = fine.reshape(len(films), -1)
        fine -= fine.mean(axis=1, keepdims=True)
        fine /= np.maximum(np.linalg.norm(fine, axis=1, keepdims=True), 1e-6)
        left, right = inverse.reshape(block.shape).T
        result[start : start + 4096] = np.einsum("ij,ij->i", fine[left], fine[right])
    return result


# Fingerprint


def fingerprint(table: pd.DataFrame) -> str:
    """What was trained on, as 64 hexadecimal digits: SHA-256 over every film's bytes and its labels.

    Labels are `label`, `view`, `boxes` and the findings. It depends neither on where the films lie, nor on
    their names, nor on the order of rows.

    Raises:
        ValueError: a film cannot be read.
    """
    from kxray.data.manifest import as_manifest, finding_columns

    table = as_manifest(table)
    findings = sorted(finding_columns(table))
    names = [name for name in ("label", "view", "boxes") if name in table.columns]
    lines = []
    for digest, row in zip(file_digests(table["path"]), table.to_dict("records"), strict=True):
        known = {name: row[name] for name in names if row[name]}
        known |= {name: row[name] for name in findings if row[name] == row[name]}
        lines.append(f"{digest} {json.dumps(known, sort_keys=True, default=str)}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def file_digests(paths: Sequence) -> list[str]:
    """SHA-256 of every file, hexadecimal; remembered in this process until size or time stamp change."""

    def digest(path):
        try:
            facts = os.stat(path)
            return _file_digest(str(path), facts.st_size, facts.st_mtime_ns)
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(digest, paths))


@functools.lru_cache(maxsize=200_000)
def _file_digest(path, size, modified):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# The classifier that sees no anatomy


def _feature_names():
    grey = [f"grey_{i}" for i in range(GREY_BINS)] + ["grey_mean", "grey_std", "grey_levels"]
    strips = [f"{side}_{what}" for side in ("top", "bottom", "left", "right") for what in _STRIP_FACTS]
    return grey + strips + list(_SHARPNESS_FACTS)


_STRIP_FACTS = ("mean", "std", "darkest", "brightest", "black", "white")
_SHARPNESS_FACTS = ("noise", "gradient", "laplacian", "laplacian_of_half", "clipped_black", "clipped_white")
FEATURE_NAMES = tuple(_feature_names())
FEATURE_GROUPS = {
    "histogram": slice(0, GREY_BINS + 3),
    "border": slice(GREY_BINS + 3, GREY_BINS + 3 + 4 * len(_STRIP_FACTS)),
    "sharpness": slice(GREY_BINS + 3 + 4 * len(_STRIP_FACTS), len(FEATURE_NAMES)),
}


def no_anatomy_features(pixels: np.ndarray) -> np.ndarray:
    """What is left of a film when nobody may look at where things are.

    Args:
        pixels: float (H, W) in [0, 1].

    Returns:
        float32 (F,) in the order of `FEATURE_NAMES`, by `FEATURE_GROUPS`: the grey histogram; mean, spread,
        extremes and share of black and white of the four border strips (4% of the side); noise (Immerkaer,
        1996), mean gradient, Laplacian at two scales and clipped pixels.

    Raises:
        ValueError: not a grey film in [0, 1].
    """
    pixels = np.asarray(pixels, np.float32)
    if pixels.ndim != 2 or not pixels.size:
        raise ValueError(f"expected one grey film (H, W), got an array of shape {pixels.shape}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"expected pixels in [0, 1], got {low:g} to {high:g}; read films with kxray.read_image()"
        )
    levels = np.bincount(np.round(pixels * 65535).astype(np.int32).ravel(), minlength=65536)
    grey = levels.reshape(GREY_BINS, -1).sum(axis=1) / pixels.size
    # How many grey levels are in use, in bits: it gives away the depth and the stretch of the original.
    used = np.log2(np.count_nonzero(levels))
    height, width = (max(1, round(side * BORDER_FRACTION)) for side in pixels.shape)
    strips = (pixels[:height], pixels[-height:], pixels[:, :width], pixels[:, -width:])
    border = [fact for strip in strips for fact in _strip_facts(strip)]
    facts = [*grey, pixels.mean(), pixels.std(), used, *border, *_sharpness_facts(pixels)]
    return np.asarray(facts, np.float32)


def _strip_facts(strip):
    return strip.mean(), strip.std(), strip.min(), strip.max(), np.mean(strip < 0.01), np.mean(strip > 0.99)


def _sharpness_facts(pixels):
    if min(pixels.shape) < 4:
        return (0.0,) * 4 + (np.mean(pixels <= 0), np.mean(pixels >= 1))
    rows, columns = (side - side % 2 for side in pixels.shape)
    half = pixels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
    # The mask [1 -2 1] x [1 -2 1] is blind to edges and sees noise alone.
    second = pixels[:, 2:] - 2 * pixels[:, 1:-1] + pixels[:, :-2]
    second = second[2:] - 2 * second[1:-1] + second[:-2]
    noise = np.sqrt(np.pi / 2) * np.mean(np.abs(second)) / 6
    gradient = np.mean(np.abs(np.diff(pixels, axis=0))) + np.mean(np.abs(np.diff(pixels, axis=1)))
    laplacians = [np.std(ndimage.laplace(image)) for image in (pixels, half)]
    return noise, gradient, *laplacians, np.mean(pixels <= 0), np.mean(pixels >= 1)


def no_anatomy_baseline(
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    *,
    seed: int = 0,
    trees: int = 300,
) -> np.ndarray:
    """Out-of-fold probabilities of a random forest on `no_anatomy_features`, on the model's own folds.

    Args:
        features: float (N, F), one row a film.
        labels: (N,) class of each film, or (N, L) findings, 0, 1 or NaN (unknown).
        folds: int (N,): the fold in which a film is scored by a forest grown on all others. Films with -1 are
            never scored (the training and validation parts of a split), always grown on.
        seed: of the forests.
        trees: a forest.

    Returns:
        float32 (N, C): for (N,) labels the probabilities of `numpy.unique(labels)`, in that order; for (N, L)
        findings that of each finding. NaN where a film is not scored or nothing can be grown.
    """
    features, labels, folds = np.asarray(features), np.asarray(labels), np.asarray(folds)
    if features.ndim != 2 or not len(features) == len(labels) == len(folds):
        raise ValueError(
            "expected one row of features, one label and one fold a film, "
            f"got {features.shape}, {labels.shape}, {folds.shape}"
        )
    if not np.isfinite(features).all():
        unread = int((~np.isfinite(features)).any(axis=1).sum())
        raise ValueError(f"{unread} films have no features (unreadable); leave them out")
    if labels.ndim == 2:
        columns = [
            _forest_probabilities(features, column, folds, (0.0, 1.0), seed, trees)[:, 1]
            for column in labels.T
        ]
        return np.stack(columns, axis=1)
    return _forest_probabilities(features, labels, folds, tuple(np.unique(labels)), seed, trees)


def _forest_probabilities(features, labels, folds, classes, seed, trees):
    from sklearn.ensemble import RandomForestClassifier

    known = np.isin(labels, classes)
    result = np.full((len(labels), len(classes)), np.nan, np.float32)
    for fold in np.unique(folds[folds >= 0]):
        grown, scored = known & (folds != fold), folds == fold
        if not grown.any():
            continue
        forest = RandomForestClassifier(
            trees, class_weight="balanced", min_samples_leaf=2, n_jobs=-1, random_state=seed
        )
        forest.fit(features[grown], labels[grown])
        result[scored] = 0.0
        columns = [classes.index(name) for name in forest.classes_]
        result[np.ix_(scored, columns)] = forest.predict_proba(features[scored])
    return result
