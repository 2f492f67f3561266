"""Which films a phantom series is made of."""

import dataclasses

from kxray.data.phantom.film import FINDINGS, VIEWS, film_shape

FORMATS = ("png", "dicom")
POSES = ("natural", "wide")


@dataclasses.dataclass(frozen=True)
class Mix:
    """What films a series is made of.

    Args:
        size: side of the square films in pixels; by default 256 for a thorax and 100 for a fillet.
        views: "frontal", "lateral" or both; only for a thorax, like all that follows but `format`.
        lateral_fraction: share of lateral films where there are both, in [0, 1].
        findings: "none", "random" (any of FINDINGS), or names to draw from: 45% of the patients have none,
            35% one, 20% two.
        poses: "natural", or "wide": turned by up to 20 degrees, scaled 0.8 to 1.25, shifted by up to 10%.
        format: "png" (16 bits) or "dicom" (12 bits).

    Raises:
        ValueError: a field out of its range.
    """

    size: int | None = None
    views: tuple = VIEWS
    lateral_fraction: float = 0.4
    findings: str | tuple = "random"
    poses: str = "natural"
    format: str = "png"

    def __post_init__(self):
        for name in ("views", "findings"):
            value = getattr(self, name)
            if not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if self.size is not None:
            film_shape(self.size)
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or not self.views or isinstance(self.views, str):
            raise ValueError(f"views must be among {', '.join(VIEWS)}, got {self.views!r}")
        if not 0 <= self.lateral_fraction <= 1:
            raise ValueError(f"lateral_fraction must be in [0, 1], got {self.lateral_fraction}")
        if isinstance(self.findings, str) and self.findings not in ("none", "random"):
            raise ValueError(f"findings must be 'none', 'random' or a list of names, got {self.findings!r}")
        unknown = [name for name in self.allowed if name not in FINDINGS]
        if unknown:
            raise ValueError(f"unknown finding {', '.join(unknown)}; the findings are {', '.join(FINDINGS)}")
        if self.poses not in POSES:
            raise ValueError(f"poses must be {' or '.join(POSES)}, got {self.poses!r}")
        if self.format not in FORMATS:
            raise ValueError(f"format must be {' or '.join(FORMATS)}, got {self.format!r}")

    @property
    def allowed(self):
        """The findings that may occur."""
        if isinstance(self.findings, str):
            return FINDINGS if self.findings == "random" else ()
        return self.findings
