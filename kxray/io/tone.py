"""From stored DICOM values to brightness: modality, window and polarity, from the header alone.

A stored value has at most 16 bits, so the whole grayscale pipeline of DICOM PS3.3 C.11 is worked out once on
every possible stored value; a film is then one table look-up. Any decoder that returns the same stored values
gives the same pixels, in numpy and in a TensorFlow graph.
"""

import dataclasses

import numpy as np
from highdicom.pixels import apply_voi_window
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from kxray.io.film import FilmError

_MODALITY = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept")
_VOI = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "WindowCenterWidthExplanation")
_WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclasses.dataclass(frozen=True, eq=False)
class ToneTable:
    """Brightness of every stored value.

    Attributes:
        values: float32 (2 ** bits stored,) in [0, 1]; `values[stored - lowest]` is the brightness.
        lowest: the smallest stored value: 0, or -2 ** (bits - 1) where the pixels are signed.
        facts: what was done, for `Film.facts`: `window`, `polarity`, ...
    """

    values: np.ndarray
    lowest: int
    facts: dict


def tone_table(header: Dataset, name: str) -> ToneTable:
    """Works out the brightness of every stored value from a DICOM header.

    Order (PS3.3 C.11): modality LUT or rescale; VOI LUT, else the first window, else the full range of values
    the header allows; inversion. Polarity follows PresentationLUTShape where present and otherwise
    PhotometricInterpretation, as highdicom, dcm4che and Weasis do: shape INVERSE already is the inversion of
    a MONOCHROME1 film, so the two never cancel. Stored values declared as padding become black.

    Raises:
        FilmError: the header describes no usable mapping.
    """
    bits = int(header.BitsStored)
    lowest = -(2 ** (bits - 1)) if header.PixelRepresentation else 0
    stored = np.arange(lowest, lowest + 2**bits, dtype=np.int64)
    transforms = _transforms(header)
    measured = apply_modality_lut(stored, transforms).astype(np.float64)
    if not np.isfinite(measured).all() or measured.min() == measured.max():
        raise FilmError(name, "its modality LUT or rescale maps every value to one", "correct RescaleSlope")
    brightness, window = _apply_voi(measured, transforms, name)

    facts = {"window": window, **_modality_facts(transforms)}
    shape = str(header.get("PresentationLUTShape") or "")
    photometric = str(header.PhotometricInterpretation)
    inverted = shape == "INVERSE" if shape else photometric == "MONOCHROME1"
    facts["polarity"] = "inverted" if inverted else "as stored"
    if shape and (shape == "INVERSE") != (photometric == "MONOCHROME1"):
        # PS3.3 C.8.11.3.1.2 allows only MONOCHROME1 with INVERSE and MONOCHROME2 with IDENTITY.
        facts["polarity_conflict"] = f"{photometric} with {shape}; PresentationLUTShape was followed"
    if inverted:
        brightness = 1.0 - brightness
    padding = _padding(header)
    if padding:
        brightness = np.where((stored >= padding[0]) & (stored <= padding[1]), 0.0, brightness)
        facts["pixel_padding"] = list(padding)
    return ToneTable(np.clip(brightness, 0, 1).astype(np.float32), lowest, facts)


def _apply_voi(measured, transforms, name):
    """Returns brightness in [0, 1], not yet inverted, and the facts of the window used."""
    if "VOILUTSequence" in transforms:
        item = transforms.VOILUTSequence[0]
        entries, first = int(item.LUTDescriptor[0]) or 2**16, int(item.LUTDescriptor[1])
        if first > measured.max() and first >= 2**15:  # an unsigned reading of a signed first value
            first -= 2**16
            item.LUTDescriptor = [item.LUTDescriptor[0], first, item.LUTDescriptor[2]]
        outputs = apply_voi(np.arange(first, first + entries), transforms)
        low, high = float(outputs.min()), float(outputs.max())
        if high == low:
            raise FilmError(name, "its VOI LUT maps every value to one", "remove VOILUTSequence")
        brightness = apply_voi(np.rint(measured).astype(np.int64), transforms).astype(np.float64)
        facts = {"kind": "voi_lut", "entries": entries, "first_value": first}
        if item.get("LUTExplanation"):
            facts["explanation"] = str(item.LUTExplanation)
        return (brightness - low) / (high - low), facts

    low, high = float(measured.min()), float(measured.max())
    full_range = (measured - low) / (high - low), {"kind": "full range", "low": low, "high": high}
    center, width = _first(transforms, "WindowCenter"), _first(transforms, "WindowWidth")
    if center is None or width is None:
        return full_range
    function = str(transforms.get("VOILUTFunction") or "LINEAR")
    if function not in _WINDOW_FUNCTIONS:
        raise FilmError(
            name, f"its VOILUTFunction is {function!r}", f"expected one of {', '.join(_WINDOW_FUNCTIONS)}"
        )
    if width < 1 and (function == "LINEAR" or width <= 0):
        full_range[1]["ignored_window"] = f"width {width:g} is below the smallest that {function} allows"
        return full_range
    facts = {"kind": "window", "center": center, "width": width, "function": function}
    explanation = transforms.get("WindowCenterWidthExplanation")
    if explanation:
        facts["explanation"] = str(explanation if isinstance(explanation, str) else explanation[0])
    if function == "LINEAR" and width == 1:  # PS3.3 C.11.2.1.2.1: a step, which the slope 1 / (w - 1) is not
        return (measured > center - 0.5).astype(np.float64), facts
    return apply_voi_window(measured, center, width, voi_lut_function=function), facts


def _transforms(header):
    """The elements that map grey values, gathered from the header and from the functional groups of an
    enhanced single-frame film, without the empty ones that real headers hold."""
    sources = [header]
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in header.get(groups) or []:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                sources.extend(group.get(macro) or [])
    gathered = Dataset()
    gathered.file_meta = header.file_meta  # says in which byte order LUT data are
    for source in sources:
        for keyword in (*_MODALITY, *_VOI):
            if keyword not in source:
                continue
            value = source[keyword].value
            if value is not None and not (hasattr(value, "__len__") and len(value) == 0):
                gathered[keyword] = source[keyword]
    if "ModalityLUTSequence" not in gathered and (
        "RescaleSlope" in gathered or "RescaleIntercept" in gathered
    ):
        gathered.setdefault("RescaleSlope", 1)
        gathered.setdefault("RescaleIntercept", 0)
    return gathered


def _modality_facts(transforms):
    if "ModalityLUTSequence" in transforms:
        return {"modality_transform": "lookup table"}
    slope, intercept = _first(transforms, "RescaleSlope"), _first(transforms, "RescaleIntercept")
    if slope is None or (slope, intercept) == (1, 0):
        return {}
    return {"modality_transform": "rescale", "rescale_slope": slope, "rescale_intercept": intercept}


def _padding(header):
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    limit = limit if isinstance(limit, int) else value
    return min(value, limit), max(value, limit)


def _first(dataset, keyword):
    value = dataset.get(keyword)
    if value is None:
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
