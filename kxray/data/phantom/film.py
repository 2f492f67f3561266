"""Synthetic films with known truth: chest films with findings, and fish fillets with bones.

    film = thorax(seed=0, index=7, view="frontal", findings=("Nodule",))
    film.pixels, film.masks["Nodule"], film.boxes["Nodule"]

Film `index` of series `seed` is the same picture whatever was made before it, in whatever process.
"""

import dataclasses
import math

import numpy as np

from kxray.data.phantom import anatomy, exposure, fish, lesions
from kxray.data.phantom.anatomy import FINDINGS
from kxray.data.phantom.rays import Rays, enlarge

__all__ = ["CALIBRES", "FINDINGS", "VIEWS", "Phantom", "fillet", "thorax"]

VIEWS = ("frontal", "lateral")
CALIBRES = (0, 1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Phantom:
    """A synthetic film and everything that is known about it.

    Attributes:
        pixels: float32 (H, W) in [0, 1], bone bright.
        label: "frontal" or "lateral" for a thorax, "bone" or "no_bone" for a fillet.
        findings: what was put in, in the order asked for.
        masks: finding (or "bone") -> bool (H, W), where it lies on the film.
        boxes: finding (or "bone") -> (x, y, width, height) in pixels, tight around the mask; a finding that
            lies outside the film has no box.
        facts: plain numbers and strings. Thorax: `angle` degrees, `spacing` mm a pixel in the patient,
            `patient`, `position`, `body` (width, depth, height multipliers and `fat` mm), `heart_ratio`,
            `lesions` (a dict a finding), and `transform`, the similarity between the film and the same
            patient upright in the middle: {"rotation": degrees anticlockwise, "scale", "shift": (right, down)
            in pixels}. Fillet: `calibre`, `calibre_px`.
    """

    pixels: np.ndarray
    label: str
    findings: tuple
    masks: dict
    boxes: dict
    facts: dict


def thorax(seed, index, *, view="frontal", size=256, findings=(), patient=None, transform=None):
    """A chest film.

    Args:
        seed, index: film `index` of the series `seed`, integers >= 0.
        view: "frontal" (0 degrees give or take a few), "lateral" (90 or -90 give or take a few), or the angle
            in degrees that the patient is turned, exactly.
        size: side of a square film in pixels, or (height, width).
        findings: names from FINDINGS.
        patient: number of the body in the series (default: `index`); films of one patient share anatomy and
            lesions.
        transform: (rotation in degrees, scale, (right, down) shift as shares of width and height) of the
            patient in the film plane; drawn at random by default, (0, 1, (0, 0)) for an upright, centred
            film.

    Returns:
        Phantom.

    Raises:
        ValueError: unknown view or finding, negative seed or index, or a size outside 32 to 4096.
    """
    shape = film_shape(size)
    _whole("seed", seed), _whole("index", index)
    number = index if patient is None else _whole("patient", patient)
    findings = tuple(findings)
    rng = np.random.default_rng([seed, index, 0])
    angle, position_shift = _pose(view, rng)
    leaning = (rng.normal(0, 2.5), math.exp(rng.normal(0.0, 0.07)), rng.normal(0, 0.025, 2) + position_shift)
    rotation, scale, shift = leaning if transform is None else transform
    if not scale > 0:
        raise ValueError(f"the scale of a transform must be above 0, got {scale}")
    shift = (float(shift[0]) * shape[1], float(shift[1]) * shape[0])
    lateral = abs(math.sin(math.radians(angle))) > 0.5

    healthy = anatomy.patient(seed, number)
    body, found = lesions.afflict(healthy, findings)
    # A film shows about 35 cm of a chest seen from the front, 31 cm from the side.
    spacing = (310.0 if lateral else 350.0) / min(shape) / float(scale)
    rays = Rays(shape, spacing, angle, rotation, shift)

    # Soft tissue is smooth: every other pixel is worked out. Bones, vessels and small lesions follow in full.
    half = rays.coarse(2)
    path, lungs = anatomy.soft_tissue(body, half, lateral)
    # Exposure and grey window are those of the healthy patient, so a finding changes the film where it lies
    # only.
    moved = any(healthy.organs.get(name) is not organ for name, organ in body.organs.items())
    before, healthy_lungs = anatomy.soft_tissue(healthy, half, lateral) if moved else (path, lungs)
    reference = before[1::2, 1::2], sum(depths[0] for depths in healthy_lungs.values())[1::2, 1::2] > 40
    path = enlarge(path, shape, 2)
    aerated = enlarge(sum(depths[0] for depths in lungs.values()), shape, 2)
    masks, lesion_facts = {}, {}
    for lesion in found:
        added = lesions.opacity(lesion, rays, aerated, body.tissue)
        now = then = None
        if lesion.side:
            now, then = (
                [enlarge(depth, shape, 2) for depth in each[lesion.side]] for each in (lungs, healthy_lungs)
            )
        masks[lesion.finding] = lesions.mask(lesion, added, body, rays, now, then)
        lesion_facts[lesion.finding] = {"side": lesion.side, **lesion.facts}
        path += added
        if lesion.finding == "Pneumothorax":
            path += lesions.pleura(body, rays, lesion.side, now[0] + now[2] > 4)
    _texture(path, aerated, rng)
    path += rays.splat(*anatomy.bones(body, rays, raised_arms=lateral), *anatomy.vessels(body, rays))

    pixels = exposure.expose(path, *reference, np.random.default_rng([seed, index, 1]))
    drawing = np.random.default_rng([seed, index, 2])
    field = exposure.collimate(pixels, drawing)
    exposure.stamp(pixels, drawing)
    for shown in masks.values():
        opened = np.zeros(shape, bool)
        opened[field] = True
        shown &= opened
    facts = {
        "angle": float(angle),
        "spacing": spacing,
        "patient": int(number),
        "position": "LL" if lateral else body.position,
        "body": {name: float(value) for name, value in body.build.items()},
        "heart_ratio": body.heart_ratio(),
        "lesions": lesion_facts,
        "transform": {"rotation": float(rotation), "scale": float(scale), "shift": shift},
    }
    label = "lateral" if lateral else "frontal"
    return Phantom(pixels, label, findings, masks, _boxes(masks), facts)


def fillet(seed, index, *, size=100, calibre=None):
    """A patch of fish fillet.

    Args:
        seed, index: film `index` of the series `seed`, integers >= 0.
        size: side of the square patch in pixels.
        calibre: 0 no bone, 1 hair-thin, 2 medium, 3 thick (vertebrae); by default half the films have none
            and the rest are shared out equally.

    Returns:
        Phantom with label "bone" or "no_bone", mask and box "bone", facts `calibre` and `calibre_px` (width
        of the widest bone in pixels).

    Raises:
        ValueError: unknown calibre, negative seed or index, or a size outside 32 to 4096.
    """
    shape = film_shape(size)
    if shape[0] != shape[1]:
        raise ValueError(f"a fillet is square, got size {size!r}")
    _whole("seed", seed), _whole("index", index)
    if calibre is None:
        draw = np.random.default_rng([seed, index, 101]).random()
        calibre = 0 if draw < 0.5 else 1 + min(2, int((draw - 0.5) * 6))
    if calibre not in CALIBRES:
        raise ValueError(f"calibre must be 0 (none), 1 (thin), 2 (medium) or 3 (thick), got {calibre!r}")
    pixels, mask, width = fish.render(seed, index, shape[0], calibre)
    masks = {"bone": mask} if calibre else {}
    facts = {"calibre": int(calibre), "calibre_px": float(width)}
    return Phantom(pixels, "bone" if calibre else "no_bone", (), masks, _boxes(masks), facts)


def _pose(view, rng):
    turn, facing = rng.normal(0, 3.0), rng.random()
    nudge = rng.normal(0, 0.01, 2)
    if view == "frontal":
        return turn, nudge + (0, 0.0)
    if view == "lateral":
        return (90.0 if facing < 0.7 else -90.0) + turn, nudge + (0, 0.02)
    if isinstance(view, (int, float)) and math.isfinite(view):
        return float(view), nudge
    raise ValueError(f"view must be {' or '.join(map(repr, VIEWS))} or an angle in degrees, got {view!r}")


def _texture(path, aerated, rng):
    """Grain of the lungs (`aerated`, mm) and unevenness of soft tissue, in place."""
    shape = path.shape
    fine = exposure.noise_field(rng, shape, (shape[1] // 6, shape[1] // 12), (0.035, 0.04))
    coarse = exposure.noise_field(rng, shape, (7, 17, 36), (0.03, 0.018, 0.012))
    path += fine * np.minimum(aerated / np.float32(80), 1)
    path *= 1 + coarse


def film_shape(size):
    """(height, width) of a `size` in pixels. Raises ValueError outside 32 to 4096."""
    height, width = (size, size) if isinstance(size, (int, np.integer)) else size
    if not all(isinstance(side, (int, np.integer)) and 32 <= side <= 4096 for side in (height, width)):
        raise ValueError(f"size must be 32 to 4096 pixels or a (height, width) of such, got {size!r}")
    return int(height), int(width)


def _whole(name, value):
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number from 0, got {value!r}")
    return int(value)


def _boxes(masks):
    """(x, y, width, height) in pixels around each mask that has any pixel."""
    boxes = {}
    for name, shown in masks.items():
        columns, rows = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(1))
        if len(columns):
            x, y = int(columns[0]), int(rows[0])
            boxes[name] = (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
    return boxes
