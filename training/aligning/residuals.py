"""How well an aligner does on films it never saw: residuals, refusals, and how alike aligned films are."""

import math

import numpy as np

from kxray.data.similarity import Similarity
from training.aligning import foreign_films

MEASURES = ("rotation", "scale", "shift")
UNITS = {"rotation": "degrees", "scale": "%", "shift": "% of the width"}
# What posed films are moved by, at most: degrees, a factor, and a share of the width.
ROTATION, SCALE, SHIFT = 20.0, 1.25, 0.1


def random_motion(rng) -> Similarity:
    """A motion within 20 degrees, a factor of 1.25 and a tenth of the width."""
    scale = math.exp(rng.uniform(-math.log(SCALE), math.log(SCALE)))
    return Similarity(rng.uniform(-ROTATION, ROTATION), scale, tuple(rng.uniform(-SHIFT, SHIFT, 2)))


def move(pixels, motion) -> np.ndarray:
    """A film (H, W) after a motion of what it shows; what comes in from outside is its mirror image."""
    height, width = pixels.shape
    margin = width // 2
    framed = np.pad(pixels, margin, mode="symmetric")
    # Shares of the framed film's width are smaller.
    ratio = width / (width + 2 * margin)
    inner = motion.inverse()
    wider = Similarity(inner.rotation, inner.scale * ratio, tuple(ratio * np.array(inner.shift)))
    return wider.warp(framed, (height, width))


def pose_errors(at_rest, moved, motions) -> np.ndarray:
    """Residuals of poses found on films and on the same patients moved by known motions.

    The pose of a moved film is its pose at rest, then the motion; what it was found to be beside that is the
    residual. A patient's own build does not enter.

    Args:
        at_rest, moved: float (N, 4), poses that were found.
        motions: N Similarity.

    Returns:
        float64 (N, 3): degrees, per cent of the scale, per cent of the width, none negative.
    """
    rows = []
    for rest, found, motion in zip(at_rest, moved, motions, strict=True):
        wanted, got = Similarity.from_pose(rest).then(motion), Similarity.from_pose(found)
        turned = (got.rotation - wanted.rotation + 180) % 360 - 180
        shifted = math.dist(got.shift, wanted.shift)
        rows.append((abs(turned), 100 * abs(got.scale / wanted.scale - 1), 100 * shifted))
    return np.array(rows, np.float64).reshape(-1, 3)


def summary(errors) -> dict:
    """Median and 90% of residuals (N, 3) by measure."""
    return {
        name: {
            "median": float(np.median(values)),
            "ninety_percent": float(np.quantile(values, 0.9)),
            "unit": UNITS[name],
        }
        for name, values in zip(MEASURES, np.asarray(errors).T, strict=True)
    }


def aligned(films, poses) -> np.ndarray:
    """Films (N, H, W) in the template's frame."""
    return np.stack([Similarity.from_pose(pose).warp(film) for film, pose in zip(films, poses, strict=True)])


def found_by(aligner, films) -> tuple:
    """(poses (N, 4), confidences (N,)) that an aligner finds on films (N, H, W)."""
    poses, confidences = [], []
    for start in range(0, len(films), 32):
        batch = np.asarray(films[start : start + 32], np.float32)[..., None]
        pose, confidence = aligner.get_layer("align").localise(batch)
        poses.append(np.asarray(pose))
        confidences.append(np.asarray(confidence))
    return np.concatenate(poses), np.concatenate(confidences)


def refused_kinds(films, seed, count=40) -> dict:
    """Pictures that are to be refused, (M, H, W) by name, made of frontal films (N, H, W) and generated.

    Generated ones come from another seed than those that an aligner is trained on.
    """
    films = np.asarray(films[:count], np.float32)
    side = films.shape[1:]
    kinds = {
        "upside down": films[:, ::-1],
        "half a turn": films[:, ::-1, ::-1],
        "inverted": 1 - films,
        "black": np.zeros((1, *side), np.float32),
    }
    if side[0] == side[1]:
        kinds["quarter turn"] = np.rot90(films, 1, (1, 2))
        generated = {
            "lateral phantom": ("lateral",),
            "limb phantom": ("limb",),
            "fish fillet": ("fillet",),
            "noise, shapes, shuffled": ("noise", "blobs", "shuffled"),
        }
        for name, drawn in generated.items():
            pictures = [
                foreign_films.draw(drawn[index % len(drawn)], films, side[0], seed + 104729, index)
                for index in range(count)
            ]
            kinds[name] = np.stack(pictures).astype(np.float32)
    return kinds


def refusals(aligner, kinds) -> dict:
    """{kind: {"films", "refused"}} of `refused_kinds`; refused is a confidence below 0.5."""
    found = {}
    for name, pictures in kinds.items():
        confidence = found_by(aligner, pictures)[1]
        found[name] = {"films": len(pictures), "refused": int((confidence < 0.5).sum())}
    return found


def likeness(films) -> float:
    """Mean correlation of films (N, H, W) with the mean of the others, in the frame's middle four fifths."""
    height, width = films.shape[1:]
    films = films[:, height // 10 : height - height // 10, width // 10 : width - width // 10]
    rows = films.reshape(len(films), -1).astype(np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    total = rows.sum(axis=0)
    others = total - rows
    return float(np.mean((rows * others).sum(axis=1) / (np.linalg.norm(others, axis=1) + 1e-9)))
