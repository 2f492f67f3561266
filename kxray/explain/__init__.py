"""Why did the model decide? Signed, raw maps of the pre-activation logit.

maps = kxray.explain.attribute(model, images, target=0, method="grad_cam")
"""

from kxray.explain.attribution import (
    METHODS,
    PREDICTED,
    attribute,
    default_methods,
    detailed_explainer,
    explainer,
)
from kxray.explain.multiscale import MultiscaleCams, multiscale_cams

__all__ = [
    "METHODS",
    "PREDICTED",
    "MultiscaleCams",
    "attribute",
    "default_methods",
    "detailed_explainer",
    "explainer",
    "multiscale_cams",
]
