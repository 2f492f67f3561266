"""The thorax of the phantom films: organs, bones, vessels and the eight NIH findings as changes of shape.

Millimetres in the frame of kxray.data.phantom.rays; the origin lies in the middle of the chest.
"""

import dataclasses
import functools

import numpy as np

from kxray.data.phantom.rays import ellipsoid, uncovered

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
)  # fmt: skip

# Linear attenuation per millimetre = mass attenuation near 60 keV (NIST, ICRU-44 tissues) x density:
# soft tissue 0.2048 cm2/g x 1.06, adipose 0.1974 x 0.95, inflated lung 0.2053 x 0.26, cortical bone 0.3148 x
# 1.92, spongy bone of vertebrae about 0.25 x 1.18. Air, 0.1875 x 0.0012, counts as nothing.
TISSUE = 0.0217
ADIPOSE = 0.0188
LUNG = 0.0053
CORTICAL_BONE = 0.0604
SPONGY_BONE = 0.0295

SIDES = {"right": -1, "left": 1}


@dataclasses.dataclass
class Thorax:
    """One patient.

    Attributes:
        organs: name -> Ellipsoid.
        skin: names of the organs whose hull is the trunk.
        build: multipliers (width, depth, height) of an average adult, and "fat" in mm under the skin.
        tissue: attenuation per mm of this patient's mixture of muscle and fat.
        female, position: "PA" or "AP" (arms and shoulder blades differ).
        seed: what the random shapes of ribs, vessels and findings follow.
    """

    organs: dict
    skin: tuple
    build: dict
    tissue: float
    female: bool
    position: str
    seed: tuple

    def heart_ratio(self):
        """Cardiothoracic ratio: width of heart over inner width of the chest, in the frontal view."""
        x = (1, 0, 0)
        chest = sum(SIDES[side] * self.organs[f"{side} lung"].centre[0] for side in SIDES)
        chest += sum(self.organs[f"{side} lung"].extent(x) for side in SIDES)
        return 2 * self.organs["heart"].extent(x) / chest

    def rng(self, purpose):
        return np.random.default_rng([*self.seed, purpose])


def patient(seed, number):
    """The patient `number` of the series `seed`, healthy."""
    rng = np.random.default_rng([seed, number, 1])
    jitter = rng.standard_normal(24) * 1.0
    female = bool(rng.random() < 0.45)
    width, depth, height = 1 + 0.05 * jitter[0], 1 + 0.07 * jitter[1], 1 + 0.05 * jitter[2] - 0.04 * female
    fat = float(np.clip(rng.gamma(2.5, 6.0), 3, 45))
    breath = float(rng.normal(0, 9))
    position = "PA" if rng.random() < 0.6 else "AP"
    portly = 1.06 if position == "AP" else 1.0

    organs = {}

    def put(name, centre, semi_axes, degrees=(0, 0, 0), pad=0.0):
        scale = np.array([width, depth, height])
        organs[name] = ellipsoid(np.array(centre) * scale, np.array(semi_axes) * scale + pad, degrees)

    put("trunk", (0, -2, -90), (162, 112, 420), (3, 0, 0), pad=fat)
    put("upper back", (0, -34, 60), (130, 84, 160), (-8, 0, 0), pad=0.6 * fat)
    put("neck", (0, -12, 250), (56, 60, 170), (-10, 0, 0), pad=0.2 * fat)
    put("belly", (0, 8, -330), (150, 112, 220), pad=1.2 * fat)
    slope = 12 + 4 * jitter[3]
    for side, sign in SIDES.items():
        put(f"{side} shoulder", (sign * 128, -24, 108), (98, 62, 56), (0, sign * slope, 0), pad=0.4 * fat)
        put(
            f"{side} trapezius",
            (sign * 50, -34, 166),
            (84, 44, 34),
            (0, sign * (slope + 16), 0),
            pad=0.3 * fat,
        )
        put(f"{side} armpit", (sign * 142, -18, 30), (30, 58, 110), (0, sign * 10, 0), pad=0.4 * fat)
    skin = tuple(organs)
    if female:
        size = float(np.clip(1 + 0.15 * jitter[4] + fat / 120, 0.7, 1.5))
        for side, sign in SIDES.items():
            place = (sign * 78, 88 + 0.9 * fat, -62 - 22 * size)
            put(f"{side} breast", place, (62 * size, 30 * size, 58 * size), (12, 0, sign * -14))

    for side, sign in SIDES.items():
        put(
            f"{side} lung",
            (sign * (72 + 1.5 * jitter[5]), -6, -48 + 3 * jitter[6]),
            (70 + 2.5 * jitter[7], 96, 192 - (3 if side == "left" else 0)),
            (6, sign * -5, 0),
        )
    top = -78 + breath
    put("right dome", (-72, 16, top - 78), (86, 104, 80), (14, 0, 0))
    put("left dome", (74, 16, top - 92 + 2 * jitter[8]), (84, 102, 80), (14, 0, 0))
    put("mediastinum", (0, -22, 0), (25 + 2 * jitter[9], 66, 250), (6, 0, 0))
    # The front mediastinum is narrow, so that the space behind the breastbone stays dark.
    put("thymus", (0, 40, 60), (17, 40, 110), (12, 0, 0))
    stretch = portly * (1 + 0.04 * jitter[10])
    put(
        "heart",
        (22 + 2 * jitter[11], 24, top + 24 - 0.2 * breath),
        (77 * stretch, 48 * stretch, 50 * stretch),
        (0, 36 + 5 * jitter[12], -14),
    )
    put("right atrium", (-20, 14, top + 40), (24 * stretch, 30, 44), (0, -8, 0))
    put("cava", (-21, 2, 62), (14, 14, 74), (0, 4, 0))
    age = float(rng.uniform(0, 1))
    put("aortic knob", (21 + 4 * age, -24, 62), (16 + 5 * age, 34, 19 + 4 * age))
    put("aorta", (18 + 5 * age, -56, -30), (13 + 2 * age, 13 + 2 * age, 110), (0, 2, 0))
    put("pulmonary trunk", (28, 8, 22), (20, 26, 30), (0, 20, 0))
    put("trachea", (3, -18, 124), (9, 9.5, 92), (8, 0, 0))
    put("right bronchus", (-20, -22, 28), (6.5, 6.5, 28), (0, 42, 0))
    put("left bronchus", (24, -24, 27), (6, 6, 30), (0, -55, 0))
    if rng.random() < 0.75:
        bubble = rng.uniform(0.5, 1.1)
        put(
            "stomach air",
            (62 + 8 * jitter[13], 2, top - 44),
            (30 * bubble, 26 * bubble, 17 * bubble),
            (0, 10, 0),
        )
    for k in range(int(rng.integers(0, 4))):
        place = rng.uniform((-90, 20, -260), (110, 70, -190))
        put(f"bowel air {k}", place, rng.uniform((10, 10, 8), (32, 20, 18)), rng.uniform(-40, 40, 3))

    build = {"width": width, "depth": depth, "height": height, "fat": fat}
    tissue = TISSUE - (TISSUE - ADIPOSE) * min(0.75, 0.15 + fat / 60)
    return Thorax(organs, skin, build, tissue, female, position, (seed, number))


def soft_tissue(thorax, rays, raised_arms):
    """Attenuation of everything but bone and vessels, and the lungs beside it.

    Args:
        raised_arms: as for a lateral film; otherwise they hang at the sides.

    Returns:
        (path, lungs): float32 (H, W) without dimension, and {side: (aerated, fluid, air)} of float32 (H, W)
        in mm.
    """
    organs = thorax.organs
    tissue = np.float32(thorax.tissue)
    enter, leave = _trunk(thorax, rays, raised_arms)
    path = tissue * (leave - enter + _arms(thorax, rays, raised_arms, (enter, leave)))
    for side in SIDES if thorax.female else ():
        # A breast thins out towards its rim, so its edge is soft.
        chord = uncovered(rays.interval(organs[f"{side} breast"]), [(enter, leave)])
        path += np.float32(ADIPOSE / 60) * chord * np.minimum(chord, 60)
    lungs = {side: lung_depths(thorax, rays, side) for side in SIDES}
    for aerated, _, air in lungs.values():
        path -= (tissue - np.float32(LUNG)) * aerated + tissue * air
    for name, body in organs.items():
        if name in ("trachea", "right bronchus", "left bronchus", "stomach air") or name.startswith("bowel"):
            window = rays.window(body)
            path[window] -= tissue * rays.chord(body, window)
    return np.maximum(path, 0, out=path), lungs


def lung_depths(thorax, rays, side):
    """How much of each ray runs through aerated lung, fluid and free air of one side: float32 (H, W) each, in
    mm.

    Effusion leaves air above a bowl, pneumothorax leaves lung inside a collapsed outline: each is one more
    ellipsoid that the interval of the lung is cut by.
    """
    organs = thorax.organs
    lung, dome = organs[f"{side} lung"], organs[f"{side} dome"]
    window = rays.window(lung)
    low, high = rays.interval(lung, window)
    # Below the widest part of the dome there is no lung.
    ratio = np.clip((rays.heights(window) - (dome.centre[2] - 12)) / 8, 0, 1)
    middle, half = (low + high) / 2, (high - low) / 2 * ratio
    low, high = middle - half, middle + half
    beside = ("right atrium", "cava") if side == "right" else ("pulmonary trunk", "aortic knob")
    groups = [("heart", beside[0]), ("mediastinum", "thymus"), (f"{side} dome",)]
    groups.append((beside[1],) if side == "right" else (beside[1], "aorta"))
    covers = [rays.hull([organs[name] for name in group], window) for group in groups]
    depths = np.zeros((3, *rays.shape), np.float32)
    aerated, fluid, air = (depth[window] for depth in depths)
    whole = uncovered((low, high), covers)
    kept = whole
    if f"{side} bowl" in organs:
        kept = uncovered(_common((low, high), rays.interval(organs[f"{side} bowl"], window)), covers)
        fluid[:] = whole - kept
    aerated[:] = kept
    if f"{side} collapsed" in organs:
        inner = uncovered(_common((low, high), rays.interval(organs[f"{side} collapsed"], window)), covers)
        np.minimum(inner, kept, out=aerated)
        air[:] = kept - aerated
    return tuple(depths)


def _common(first, second):
    low = np.maximum(first[0], second[0])
    return low, np.maximum(low, np.minimum(first[1], second[1]))


def _trunk(thorax, rays, raised_arms):
    parts = dict(thorax.organs)
    if raised_arms:  # the shoulders follow the arms up, and close in
        for side, sign in SIDES.items():
            shoulder = parts[f"{side} shoulder"]
            parts[f"{side} shoulder"] = dataclasses.replace(
                shoulder,
                centre=shoulder.centre * (0.8, 1, 1) + (0, 14 + 9 * sign, 50),
                semi_axes=shoulder.semi_axes * (0.62, 1.25, 1.1),
            )
    return rays.hull([parts[name] for name in thorax.skin])


def _arms(thorax, rays, raised, trunk):
    """Depth in mm of the upper arms outside the trunk."""
    thick = 38 + 0.35 * thorax.build["fat"]
    depth = np.zeros(rays.shape, np.float32)
    for sign in SIDES.values():
        if raised:
            arm = ellipsoid(
                (sign * 140, 52 + 8 * sign, 236), (thick, 1.25 * thick, 150), (-36 + 10 * sign, 0, 0)
            )
        else:
            arm = ellipsoid((sign * 198, -25, -20), (thick, thick, 175), (0, -sign * 13, 0))
        depth += uncovered(rays.interval(arm), [trunk])
    return depth


def bones(thorax, rays, raised_arms):
    """What the skeleton adds to soft tissue: a list of point clouds for `Rays.splat`."""
    rng = thorax.rng(2)
    detail = max(1.0, 1.55 / rays.spacing)
    along, across = int(84 * detail), int(20 * detail)
    build = thorax.build
    scale = np.array([build["width"], build["depth"], build["height"]], np.float32)
    cortical, spongy = CORTICAL_BONE - thorax.tissue, SPONGY_BONE - thorax.tissue
    bend = rng.normal(0, 3.0)

    def spine(z):
        return np.stack([bend * np.sin(z / 70), -62 - 16 * np.cos((z - 15) / 150), z], -1)

    # Ribs: from the spine outwards, around and down to the front, following the wall of the lungs.
    order = np.arange(11)[None, :, None]
    start = 146 - 22.5 * order - 6 * (order == 0)
    sweep = np.linspace(0, 1, along)[None, None, :]
    turn = np.radians(-78 + (126 + 6 * np.minimum(order, 6) - 14 * np.maximum(order - 6, 0)) * sweep)
    drop = (26 + 9.5 * np.minimum(order, 7)) * (0.75 * sweep + 0.45 * sweep**2)
    z = start + 6 * np.sin(np.pi * np.minimum(sweep * 3, 1)) - drop
    wall = np.sqrt(np.clip(1 - ((z + 58) / 222) ** 2, 0.06, 1))
    sign = np.array([-1, 1])[:, None, None]
    ribs = np.stack(
        np.broadcast_arrays(sign * (5 + 142 * wall * np.cos(turn)), -10 + 103 * wall * np.sin(turn), z), -1
    ).reshape(22, along, 3)
    ribs = ribs + rng.normal(0, 1.2, (22, 1, 3))
    radii = np.array([5.6, 3.4]) * (1 + 0.05 * rng.standard_normal((22, 1, 1)))
    clouds = [rays.tubes(ribs * scale, radii, 1.1 * cortical, 1.1 * spongy, across)]

    # Vertebrae: short upright tubes with dense end plates; pedicles, spinous and transverse processes.
    count = 18
    middle = 172 - 23.5 * np.arange(count)
    length = np.linspace(-1, 1, 16)
    z = middle[:, None] + 9.2 * length
    size = (12.5 + 0.42 * np.arange(count))[:, None, None] * np.array([1.0, 0.86])
    flare = (0.9 + 0.14 * length**2)[None, :, None]
    plate = np.where(np.abs(length) > 0.85, 1.9 * spongy, 0.5 * spongy) * np.ones((count, 1))
    centres = spine(z)
    clouds.append(
        rays.tubes(centres * scale, size * flare, 0.16 * cortical, plate, int(64 * detail**2), (1, 0, 0))
    )

    # Processes of the vertebrae, as two short bars each.
    fine = np.linspace(0, 1, int(16 * detail))[:, None]
    place = centres[:, 8, None, :]
    spines = place + np.array([0, -22, 0]) + fine * np.array([0, -28, -18])
    wings = place + np.array([-32, -26, 2]) + fine * np.array([64, 0, 0])
    clouds.append(
        rays.tubes(np.concatenate([spines, wings]) * scale, (3.8, 2.6), 0.3 * cortical, 0.3 * spongy, 12)
    )

    away = 16 if thorax.position == "PA" else -6
    lift, slope = rng.normal(0, 5), rng.normal(0, 4)
    one_side = [
        # knots from end to end, half-widths, density
        (
            ((15, 46, 104), (50, 46, 116 + lift), (100, 8, 128 + lift), (160, -28, 128 + lift + slope)),
            (6.6, 5.6),
            1.2,
        ),
        (((150 + 0.4 * away, -44, 96), (136 + 0.8 * away, -78, 42), (112 + away, -96, -26)), (4.5, 3.5), 0.9),
        (((84 + away, -88, 108), (92 + away, -98, 50), (112 + away, -96, -22)), (2.6, 2.2), 0.7),
        (((88 + away, -96, 92), (128 + away, -84, 110), (168 + 0.4 * away, -42, 130)), (5, 3), 0.8),
        (((106 + away, -92, 102), (118 + away, -94, 30)), (24, 2), 0.2),
        (((170, -30, 94), (174, -30, 112)), (20, 20), 0.4),
    ]
    if raised_arms:
        one_side.append((((165, -20, 110), (152, 30, 180), (140, 90, 280)), (11, 11), 0.8))
    else:
        one_side.append((((174, -30, 106), (196, -30, 10), (214, -24, -160)), (11, 11), 0.8))
    pairs = [(np.array(knots) * (sign, 1, 1), *rest) for sign in SIDES.values() for knots, *rest in one_side]
    pairs.append((np.array([(0, 62, 100), (0, 86, 46), (0, 103, -50)]), (15, 4.5), 0.35))
    # Thick bones take more points across, or they look woven.
    for thick in (False, True):
        group = [pair for pair in pairs if (max(pair[1]) > 10) == thick]
        curves = np.stack([_curve(knots, along * 4 // 3) for knots, _, _ in group])
        widths = np.array([widths for _, widths, _ in group])[:, None]
        density = np.array([density for _, _, density in group])[:, None]
        rim, core = 0.8 * cortical * density, 0.6 * spongy * density
        points = 2 * across if thick else across * 2 // 3
        clouds.append(rays.tubes(curves * scale, widths, rim, core, points, reference=(0.9, 0.1, 0.4)))
    return clouds


def _curve(knots, count):
    """(count, 3) points along the polynomial through knots (K, 3)."""
    return _lagrange(len(knots), count) @ knots


@functools.lru_cache(maxsize=16)
def _lagrange(knots, count):
    place, fine = np.linspace(0, 1, knots), np.linspace(0, 1, count)[:, None]
    apart = place[:, None] - place + np.eye(knots)
    steps = (fine[:, None, :] - place) / apart
    steps[:, np.arange(knots), np.arange(knots)] = 1
    return steps.prod(-1)


def vessels(thorax, rays):
    """The vessels that branch from the two hila into aerated lung: a list of one cloud for `Rays.splat`."""
    rng = thorax.rng(3)
    organs = thorax.organs
    starts, ends, radii, owners = [], [], [], []
    for side, sign in SIDES.items():
        count = 9
        hilum = np.array([sign * 34, -12, 14 if side == "right" else 22], float)
        origin = hilum + rng.normal(0, (5, 8, 10), (count, 3))
        fan = np.linspace(-1.25, 1.25, count) + rng.normal(0, 0.12, count)
        heading = np.stack(
            [sign * np.cos(fan) * 0.9 + 0.1, rng.normal(0, 0.55, count), np.sin(fan) * 1.2 - 0.25], -1
        )
        radius = rng.uniform(3.6, 5.4, count)
        length = 34.0
        for _ in range(5):
            heading /= np.linalg.norm(heading, axis=-1, keepdims=True)
            end = origin + heading * length * rng.uniform(0.75, 1.25, (len(origin), 1))
            starts.append(origin)
            ends.append(end)
            radii.append(np.stack([radius, radius * 0.8], -1))
            owners += [side] * len(origin)
            origin, radius = np.repeat(end, 2, 0), np.repeat(radius * 0.72, 2)
            heading = np.repeat(heading, 2, 0) + rng.normal(0, 0.38, (len(origin), 3))
            length *= 0.86
    starts, ends, radii = np.concatenate(starts), np.concatenate(ends), np.concatenate(radii)
    along = np.linspace(0, 1, int(10 * max(1.0, 1.55 / rays.spacing)))[None, :, None]
    points = starts[:, None] + along * (ends - starts)[:, None]
    right = np.array([owner == "right" for owner in owners])
    inside = np.zeros(points.shape[:2], bool)
    for side, mine in (("right", right), ("left", ~right)):
        place = points[mine]
        free = organs[f"{side} lung"].contains(place) & ~organs[f"{side} dome"].contains(place)
        free &= ~organs["heart"].contains(place)
        for kept in ("bowl", "collapsed"):
            if f"{side} {kept}" in organs:
                free &= organs[f"{side} {kept}"].contains(place)
        inside[mine] = free
    width = radii[:, :1] + (radii[:, 1:] - radii[:, :1]) * along[..., 0]
    density = (TISSUE - LUNG) * inside
    return [rays.tubes(points, np.repeat(width[..., None], 2, -1), density, density, 5)]
