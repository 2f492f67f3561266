"""Why did the model decide? Signed, raw maps of the pre-activation logit.

maps = kxray.explain.attribute(model, images, target=0, method="grad_cam")

And what would have to change for it to decide otherwise? Counterfactual films.

found = kxray.explain.masked_residual(model, spec, films, "no Effusion")
"""

from kxray.explain.attribution import (
    METHODS,
    PREDICTED,
    attribute,
    default_methods,
    detailed_explainer,
    explainer,
)
from kxray.explain.counterfactual import Counterfactuals, check_asked, gan_counterfactuals
from kxray.explain.eigen import eigen_cam
from kxray.explain.labels import binary_explainer
from kxray.explain.latent_shift import encoder_decoder, latent_shift
from kxray.explain.masked_residual import Search, masked_residual
from kxray.explain.multiscale import MultiscaleCams, multiscale_cams
from kxray.explain.overlay import overlay
from kxray.explain.targets import (
    Target,
    opposite,
    target_index,
    target_names,
    targets_of,
)
from kxray.explain.tf_keras_vis import activation_maximisation, score_cam

__all__ = [
    "METHODS",
    "PREDICTED",
    "Counterfactuals",
    "MultiscaleCams",
    "Search",
    "Target",
    "activation_maximisation",
    "attribute",
    "binary_explainer",
    "check_asked",
    "default_methods",
    "detailed_explainer",
    "eigen_cam",
    "encoder_decoder",
    "explainer",
    "gan_counterfactuals",
    "latent_shift",
    "masked_residual",
    "multiscale_cams",
    "opposite",
    "overlay",
    "score_cam",
    "target_index",
    "target_names",
    "targets_of",
]
