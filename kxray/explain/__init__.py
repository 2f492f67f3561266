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
from kxray.explain.eigen import eigen_cam
from kxray.explain.labels import binary_explainer
from kxray.explain.multiscale import MultiscaleCams, multiscale_cams
from kxray.explain.overlay import overlay
from kxray.explain.tf_keras_vis import activation_maximisation, score_cam

__all__ = [
    "METHODS",
    "PREDICTED",
    "MultiscaleCams",
    "activation_maximisation",
    "attribute",
    "binary_explainer",
    "default_methods",
    "detailed_explainer",
    "eigen_cam",
    "explainer",
    "multiscale_cams",
    "overlay",
    "score_cam",
]
