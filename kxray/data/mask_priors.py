"""Where a disease is likely in a frontal chest by anatomy alone: what few boxes are shrunk to."""

import numpy as np

REGIONS = ("right_lung", "left_lung", "heart")

# Middle (x, y), half axes and turn clockwise in degrees, by eye on the mean of 300 NIH films.
_ELLIPSES = {
    "right_lung": ((-0.175, -0.05), (0.135, 0.32), 8),
    "left_lung": ((0.18, -0.05), (0.135, 0.32), -8),
    "heart": ((0.05, 0.15), (0.19, 0.15), 25),
}
# How likely, relative to the likeliest place, at four depths of a lung (apex to base), at three places across
# it (from the middle of the chest to its wall), and how far beyond the lung that is seen, in shares of the
# width: collapse and fluid hide the base that they are in. Textbook anatomy in numbers by hand, not measured.
_IN_LUNGS = {
    "atelectasis": ((0.2, 0.4, 0.8, 1.0), (1.0, 1.0, 1.0), 0.04),
    "effusion": ((0.05, 0.15, 0.6, 1.0), (0.5, 0.7, 1.0), 0.06),
    "infiltration": ((0.4, 0.7, 1.0, 1.0), (1.0, 1.0, 0.8), 0.02),
    "pneumonia": ((0.4, 0.7, 1.0, 1.0), (1.0, 1.0, 0.8), 0.02),
    "pneumothorax": ((1.0, 0.8, 0.5, 0.3), (0.3, 0.5, 1.0), 0.02),
}
_ANYWHERE = ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0.0)
_HEART = "cardiomegaly"
_HEART_REACH = 0.05
_PRIOR_SMOOTHING = 0.025


def disease_prior(label, regions=None, size=64) -> np.ndarray:
    """Where a disease is likely by anatomy alone.

    Cardiomegaly: the heart; Effusion and Atelectasis: lower lungs, the former most at their outer angles;
    Infiltration and Pneumonia: lungs, more in the middle and below; Pneumothorax: apex and outer rim; "No
    Finding": lungs and heart; Mass, Nodule and every name that is not known: lungs. A name that holds one of
    these ("Pleural Effusion") counts as it.

    Args:
        label: the disease.
        regions: dict of bool (s, s): right_lung, left_lung and heart of the template, in the aligned frame;
            None: `chest_regions`.
        size: m.

    Returns:
        float32 (m, m) in [0, 1], its largest value 1.

    Raises:
        ValueError: regions that are not as above.
    """
    regions = chest_regions(max(size, 128)) if regions is None else _checked_regions(regions)
    kind = _kind(label)
    if kind == _HEART:
        likely = _near(regions["heart"], _HEART_REACH).astype(float)
    else:
        depths, across, reach = _IN_LUNGS.get(kind, _ANYWHERE)
        right, left = (
            np.interp(down, (0, 1 / 3, 2 / 3, 1), depths)[:, None]
            * np.interp(outwards, (0, 0.5, 1), across)
            * _near(regions[name], reach)
            for name in REGIONS[:2]
            for down, outwards in [_lung_axes(regions[name], name)]
        )
        likely = np.maximum(right, left)
        if kind == "no finding":
            likely = np.maximum(likely, regions["heart"])
    return to_one(stretched(smooth(likely, _PRIOR_SMOOTHING), size))


def chest_regions(size=64) -> dict:
    """The lungs and the heart of an average frontal film as ellipses: dict of bool (size, size).

    The patient's right lung lies at the left of the film.
    """
    middles = (np.arange(size) + 0.5) / size - 0.5
    regions = {}
    for name, ((x, y), (half_width, half_height), degrees) in _ELLIPSES.items():
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        right, down = middles[None, :] - x, middles[:, None] - y
        along, beside = cos * right + sin * down, cos * down - sin * right
        regions[name] = (along / half_width) ** 2 + (beside / half_height) ** 2 <= 1
        # A coarse grid may have no pixel's middle inside; every region has a place.
        regions[name][int((y + 0.5) * size), int((x + 0.5) * size)] = True
    return regions


def _kind(label):
    name = label.lower().replace("_", " ")
    return next((kind for kind in (*_IN_LUNGS, _HEART, "no finding") if kind in name), None)


def without_side(labels):
    """Those of the diseases that are as likely right as left: all but those of the heart."""
    return tuple(label for label in labels if _kind(label) != _HEART)


def _checked_regions(regions):
    shapes = {np.shape(regions[name]) for name in REGIONS if name in regions}
    if not all(name in regions for name in REGIONS) or len(shapes) != 1:
        raise ValueError(f"expected regions {', '.join(REGIONS)} of one shape, got {', '.join(regions)}")
    regions = {name: np.asarray(regions[name]) != 0 for name in REGIONS}
    for name, region in regions.items():
        if region.ndim != 2 or region.shape[0] != region.shape[1] or not region.any():
            raise ValueError(f"expected a region (s, s) that is not empty for {name}, got {region.shape}")
    return regions


def _lung_axes(lung, name):
    """Of each row its depth in the lung (0 apex, 1 base), of each column how far out it lies (1 the wall)."""
    rows, columns = np.nonzero(lung)
    depth = (np.arange(lung.shape[0]) - rows.min()) / max(1, np.ptp(rows))
    right = (np.arange(lung.shape[1]) - columns.min()) / max(1, np.ptp(columns))
    return depth, 1 - right if name == "right_lung" else right


def _near(region, reach):
    from scipy import ndimage

    return ndimage.distance_transform_edt(~region) <= reach * len(region) if reach else region


def smooth(values, deviation):
    """A square map blurred by a Gaussian of a deviation in shares of its width; outside of it is 0."""
    from scipy import ndimage

    values = np.asarray(values, np.float64)
    return ndimage.gaussian_filter(values, deviation * len(values), mode="constant") if deviation else values


def to_one(values):
    """Divided by the largest value, which must be above 0; float32."""
    return (values / values.max()).astype(np.float32)


def stretched(values, size):
    """A map (h, w) without negative values as float32 (size, size), antialiased."""
    from kxray.io.resize import resize

    values = np.asarray(values, np.float32)
    return values if values.shape == (size, size) else np.maximum(resize(values, (size, size)), 0)
