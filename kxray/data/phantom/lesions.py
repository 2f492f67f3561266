"""The eight NIH findings as changes to a thorax: moved organs, and opacities placed in the lungs.

Every finding draws from its own stream of the patient's seed, so it looks the same whatever else the patient
has and from whichever side the film is taken.
"""

import dataclasses

import numpy as np

from kxray.data.phantom.anatomy import FINDINGS, LUNG, SIDES
from kxray.data.phantom.rays import ellipsoid

NODULE_MM = (9.0, 29.0)
MASS_MM = (33.0, 70.0)


@dataclasses.dataclass
class Lesion:
    """What one finding adds to the lungs: solid bodies and soft round clouds, all in mm.

    Attributes:
        finding, side: name from FINDINGS; "right", "left" or "" where it has no side.
        bodies: list of (Ellipsoid, share of soft tissue in it, 0 to 1).
        clouds: (K, 5) centre x, y, z, standard deviation, share of soft tissue at the centre.
        facts: plain numbers, for example `diameter_mm`.
    """

    finding: str
    side: str
    bodies: list = dataclasses.field(default_factory=list)
    clouds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 5)))
    facts: dict = dataclasses.field(default_factory=dict)


def afflict(healthy, findings):
    """A copy of the patient with `findings`.

    Returns:
        (Thorax, list of Lesion in the order of `findings`).

    Raises:
        ValueError: a finding that is not one of FINDINGS.
    """
    thorax = dataclasses.replace(healthy, organs=dict(healthy.organs))
    lesions = []
    for finding in findings:
        if finding not in FINDINGS:
            raise ValueError(f"unknown finding {finding!r}; the findings are {', '.join(FINDINGS)}")
        rng = healthy.rng(10 + FINDINGS.index(finding))
        side = "right" if rng.random() < 0.5 else "left"
        lesions.append(_MAKERS[finding](thorax, rng, side))
    return thorax, lesions


def _cardiomegaly(thorax, rng, side):
    target = rng.uniform(0.57, 0.68)
    heart = thorax.organs["heart"]
    grow = target / thorax.heart_ratio()
    # The enlarged heart still rests on the diaphragm: it grows to the left, to the front and upwards.
    centre = heart.centre + np.array([6.0, 2.0, 0.55 * heart.semi_axes[2] * (grow - 1)])
    thorax.organs["heart"] = dataclasses.replace(
        heart, centre=centre, semi_axes=heart.semi_axes * np.array([grow, 1 + 0.5 * (grow - 1), grow])
    )
    thorax.organs["right atrium"] = thorax.organs["right atrium"].scaled(1 + 0.5 * (grow - 1))
    return Lesion("Cardiomegaly", "", facts={"heart_ratio": thorax.heart_ratio()})


def _effusion(thorax, rng, side):
    lung, dome = thorax.organs[f"{side} lung"], thorax.organs[f"{side} dome"]
    level = dome.centre[2] + dome.semi_axes[2] + rng.uniform(-22, 70)
    # What stays aerated is a bowl with a rounded floor, so the fluid climbs at the walls: the meniscus.
    centre = (lung.centre[0] - SIDES[side] * rng.uniform(4, 14), lung.centre[1] + 6, level + 220)
    thorax.organs[f"{side} bowl"] = ellipsoid(centre, (112, 150, 220))
    return Lesion("Effusion", side, facts={"level_mm": float(level)})


def _pneumothorax(thorax, rng, side):
    lung = thorax.organs[f"{side} lung"]
    kept = rng.uniform(0.68, 0.9)
    hilum = np.array([SIDES[side] * 22, lung.centre[1], -75.0])
    # The lung falls towards its root; front to back it keeps its depth, so that air shows beside it, not over
    # it.
    thorax.organs[f"{side} collapsed"] = dataclasses.replace(
        lung,
        centre=hilum + kept * (lung.centre - hilum),
        semi_axes=lung.semi_axes * np.array([kept, 1.0, kept]),
    )
    return Lesion("Pneumothorax", side, facts={"kept_share": float(kept)})


def _atelectasis(thorax, rng, side):
    sign = SIDES[side]
    dome = thorax.organs[f"{side} dome"]
    rise = rng.uniform(10, 26)
    thorax.organs[f"{side} dome"] = dataclasses.replace(dome, centre=dome.centre + np.array([0, 0, rise]))
    shift = np.array([sign * rng.uniform(2, 9), 0, 0])
    for name in ("heart", "mediastinum", "thymus", "trachea", "right atrium", "cava"):
        organ = thorax.organs[name]
        thorax.organs[name] = dataclasses.replace(organ, centre=organ.centre + shift)
    top = dome.centre[2] + dome.semi_axes[2] + rise
    bodies = []
    if rng.random() < 0.4:  # a lower lobe folded against the spine
        place = (sign * rng.uniform(34, 48), -42, top + rng.uniform(0, 14))
        bodies.append((ellipsoid(place, (26, 30, rng.uniform(34, 50)), (0, sign * 24, 0)), 0.75))
    for k in range(int(rng.integers(1, 4))):
        place = (sign * rng.uniform(58, 88), rng.uniform(-35, 35), top + 10 + 16 * k + rng.uniform(-5, 5))
        size = (rng.uniform(26, 42), rng.uniform(24, 36), rng.uniform(3.0, 6.0))
        bodies.append((ellipsoid(place, size, (rng.uniform(-7, 7), sign * rng.uniform(-14, 24), 0)), 0.7))
    return Lesion("Atelectasis", side, bodies, facts={"rise_mm": float(rise)})


def _nodule(thorax, rng, side):
    diameter = rng.uniform(*NODULE_MM)
    semi_axes = diameter / 2 * np.array([1.0, rng.uniform(0.86, 1), rng.uniform(0.86, 1)])
    centre = _free_place(thorax, rng, side, diameter / 2)
    body = ellipsoid(centre, semi_axes, rng.uniform(-90, 90, 3))
    return Lesion("Nodule", side, [(body, 1.0)], facts={"diameter_mm": float(diameter)})


def _mass(thorax, rng, side):
    diameter = rng.uniform(*MASS_MM)
    radius = diameter / 2
    centre = _free_place(thorax, rng, side, radius)
    bodies = [(ellipsoid(centre, radius * np.array([1, 0.95, 0.92]), rng.uniform(-90, 90, 3)), 0.8)]
    for _ in range(int(rng.integers(2, 5))):  # lobes that stay inside the stated diameter
        away = rng.standard_normal(3)
        away *= 0.42 * radius / np.linalg.norm(away)
        bodies.append((ellipsoid(centre + away, np.full(3, radius * rng.uniform(0.45, 0.57))), 0.25))
    return Lesion("Mass", side, bodies, facts={"diameter_mm": float(diameter)})


def _infiltration(thorax, rng, side):
    sides = ("right", "left") if rng.random() < 0.6 else (side,)
    clouds = []
    for each in sides:
        spots = _inside_lung(thorax, rng, each, 26)
        clouds.append(np.c_[spots, rng.uniform(9, 20, len(spots)), rng.uniform(0.12, 0.42, len(spots))])
    return Lesion("Infiltration", "" if len(sides) == 2 else side, clouds=np.concatenate(clouds))


def _pneumonia(thorax, rng, side):
    focus = _inside_lung(thorax, rng, side, 1)[0]
    count = int(rng.integers(12, 20))
    spots = focus + rng.normal(0, rng.uniform(13, 20), (count, 3))
    clouds = np.c_[spots, rng.uniform(7, 14, count), rng.uniform(0.4, 0.8, count)]
    return Lesion("Pneumonia", side, clouds=clouds)


_MAKERS = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
}


def _inside_lung(thorax, rng, side, count):
    """`count` points in aerated lung, (count, 3) mm."""
    return _candidates(thorax, rng, side, 40 * count)[:count]


def _candidates(thorax, rng, side, tries):
    lung = thorax.organs[f"{side} lung"]
    points = lung.centre + rng.uniform(-0.85, 0.85, (tries, 3)) * lung.semi_axes @ lung.rotation.T
    free = lung.scaled(0.85).contains(points) & (points[:, 2] < 100)
    for name in ("heart", "mediastinum", f"{side} dome"):
        free &= ~thorax.organs[name].contains(points)
    free &= points[:, 2] > thorax.organs[f"{side} dome"].centre[2]
    return points[free]


def _free_place(thorax, rng, side, radius):
    """A centre for a ball of `radius` mm that lies as much in aerated lung as 80 tries allow."""
    points = _candidates(thorax, rng, side, 80)
    compass = np.concatenate([np.eye(3), -np.eye(3)]) * radius
    around = points[:, None] + compass
    clear = thorax.organs[f"{side} lung"].contains(around).sum(1)
    for name in ("heart", "mediastinum", "aorta", f"{side} dome"):
        clear = clear - thorax.organs[name].contains(around).sum(1)
    best = np.flatnonzero(clear == clear.max())
    return points[best[0]]


def opacity(lesion, rays, aerated, tissue):
    """Attenuation the lesion adds to lung that is `aerated` mm deep, float32 (H, W), in tissue of this
    density."""
    added = np.zeros(rays.shape, np.float32)
    contrast = np.float32(tissue - LUNG)
    for body, share in lesion.bodies:
        window = rays.window(body)
        added[window] += contrast * np.float32(share) * rays.chord(body, window)
    if len(lesion.clouds):
        centres = lesion.clouds[:, :3] @ rays.axes.T
        sigma = lesion.clouds[:, 3]
        depth = contrast * lesion.clouds[:, 4] * sigma * np.sqrt(2 * np.pi)
        # The shadow of a round Gaussian cloud is the product of a row and a column.
        rows = depth * np.exp(-0.5 * ((rays.v[:, None] - centres[:, 1]) / sigma) ** 2)
        columns = np.exp(-0.5 * ((rays.u[:, None] - centres[:, 0]) / sigma) ** 2)
        added += (rows @ columns.T).astype(np.float32)
    # A round body can fill all the lung on its ray, not the chest wall; an infiltrate leaves some air.
    solid = lesion.finding in ("Nodule", "Mass")
    return np.minimum(added, contrast * np.float32(1.0 if solid else 0.8) * aerated)


def pleura(thorax, rays, side, inside):
    """Attenuation of the thin edge of a collapsed lung, float32 (H, W), where `inside` (bool) is that lung's
    space."""
    outer = thorax.organs[f"{side} collapsed"]
    inner = dataclasses.replace(outer, semi_axes=outer.semi_axes - 1.3)
    line = rays.chord(outer) - rays.chord(inner)
    return np.float32(thorax.tissue) * line * inside


def mask(lesion, added, thorax, rays, depths, before):
    """Where the finding shows on the film: bool (H, W).

    Args:
        added: what `opacity` returned.
        depths, before: (aerated, fluid, air) of the lesion's side, now and in the healthy patient, float32
            (H, W) mm; None for findings without a side.
    """
    if lesion.finding == "Cardiomegaly":
        return (rays.chord(thorax.organs["heart"]) > 0) | (rays.chord(thorax.organs["right atrium"]) > 0)
    if lesion.finding == "Effusion":
        return depths[1] > 6
    if lesion.finding == "Pneumothorax":
        aerated, _, air = depths
        return (air > 5) & (air > 0.5 * (air + aerated))
    if lesion.finding in ("Nodule", "Mass"):
        return rays.chord(lesion.bodies[0][0]) > 0
    shown = added > max(0.3 * float(added.max()), 0.02)
    if lesion.finding == "Atelectasis":  # the lung that the raised diaphragm took counts too
        dome = thorax.organs[f"{lesion.side} dome"]
        below = rays.heights() < dome.centre[2] + dome.semi_axes[2]
        shown |= (before[0] - depths[0] > 25) & below
    return shown
