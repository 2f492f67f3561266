"""A film in memory, and the one error that says why a file is not one."""

import dataclasses
from collections.abc import Mapping

import numpy as np

# A film is refused from its header, before anything is decoded, above these. The largest digitised films
# (long-leg and whole-spine composites) stay below 5,000 x 16,384 pixels.
MAX_SIDE = 16_384
# A picture smaller than this is no film; models refuse it, `read_image` does not.
MIN_SIDE = 16
MAX_PIXELS = 80_000_000


class FilmError(ValueError):
    """A file that is not a readable, single, greyscale film.

    Args:
        name: the file, as the caller named it.
        problem: what is wrong with it.
        remedy: what to do about it; may be empty.

    `str(error)` is one line: "name: problem; remedy".
    """

    def __init__(self, name: str, problem: str, remedy: str = ""):
        # The three parts are `args`, so that the error survives the pickling between worker processes.
        super().__init__(name, problem, remedy)
        self.name, self.problem, self.remedy = name, problem, remedy

    def __str__(self):
        sentence = f"{self.name}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")
        return " ".join(sentence.split())


@dataclasses.dataclass(frozen=True, eq=False)
class Film:
    """One greyscale film.

    Attributes:
        pixels: float32 (H, W) in [0, 1]; larger is what a viewer shows whiter, so bone is bright.
        bits: bits stored a pixel in the file (8, 10, 12, 16, ...).
        facts: plain JSON values: `source_format` ("png", "jpeg", "tiff", "dicom"), and where the file says so
            `transfer_syntax`, `photometric_interpretation`, `presentation_lut_shape`, `polarity`, `window`,
            `view_position`, `patient_id`, `modality`, `body_part`, `pixel_spacing` (mm, row then column),
            `synthetic` (True: a generator made the film), ...
    """

    pixels: np.ndarray
    bits: int
    facts: Mapping[str, object]

    def __post_init__(self):
        if self.pixels.dtype != np.float32 or self.pixels.ndim != 2:
            raise ValueError(
                f"Film.pixels must be float32 (H, W), got {self.pixels.dtype} {self.pixels.shape}; "
                "read films with kxray.read_image()"
            )


def check_size(name: str, height: int, width: int) -> None:
    """Raises FilmError unless a picture of this size, in pixels, is a film we would decode."""
    if height < 1 or width < 1:
        raise FilmError(name, f"the header says {height} x {width} pixels", "the file is damaged")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise FilmError(
            name,
            f"the header says {height} x {width} pixels, more than a film has "
            f"(at most {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all)",
            "scale it down first",
        )
