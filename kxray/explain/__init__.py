"""Why did the model decide? Signed, raw maps of the pre-activation logit.

maps = kxray.explain.attribute(model, images, target=0, method="grad_cam")
"""

from kxray.explain.attribution import METHODS, attribute, explainer

__all__ = ["METHODS", "attribute", "explainer"]
