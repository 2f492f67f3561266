"""What tf-keras-vis does better than gradients can: Score-CAM and activation maximisation.

It is an optional extra: pip install "kxray[vis]". These two run many forward passes and Python between them;
they neither trace nor export.
"""

import importlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from kxray.explain.attribution import checked
from kxray.explain.graph import feature_map, require_functional
from kxray.explain.head import with_logits


def score_cam(model, images, target, layer=None, upsample=False, batch_size=32):
    """Score-CAM (Wang et al., 2020): sum_k a_k A_k, a = softmax_k(logit of the film masked by A_k).

    A_k, enlarged and min-max scaled, is the mask. No gradients, but one forward pass for each of K features.
    Computed by tf-keras-vis, whose own weights are a softmax over the classes of the model's output: 1 for
    every feature of a model with one sigmoid unit, and a second softmax for a softmax model. It is given
    logits and a score that undoes that softmax, so that the weights are those of the paper.

    Args:
        model: functional keras.Model.
        images: float array (N, H, W, C), the model's own input.
        target: class index (an output unit), or one an image.
        layer: name of the layer whose (N, h, w, K) output is mapped; the last spatial one by default.
        upsample: whether maps are resized (bilinear) to the films' height and width.
        batch_size: masked films at once.

    Returns:
        float32 (N, h, w, 1), before the final ReLU.

    Raises:
        ImportError: tf-keras-vis is not installed.
        ValueError: images, target or layer do not fit the model.
    """
    score_cams = _module("scorecam").Scorecam
    images, targets = checked(model, images, target)
    features = feature_map(model, layer)
    # tf-keras-vis takes a layer and reads its `output`, which may be that of another model.
    feature_layer = keras.Model(model.inputs, features)
    maps = []
    for film, unit in zip(images, targets, strict=True):
        pair = _LogitOf(model, int(unit), batch_size)
        reference = np.float64(pair([film[None]])[0, 0])
        shares = []

        def share(probabilities, reference=reference, shares=shares):
            logit = np.log(np.float64(probabilities[:, 0])) - np.log(np.float64(probabilities[:, 1]))
            # Relative to the whole film, which the softmax over features does not see but float32 does.
            shares.append(np.exp(np.clip(logit - reference, -80, 80)))
            return shares[-1]

        weighted = score_cams(pair)(
            share, film[None], feature_layer, False, None, expand_cam=False, normalize_cam=False
        )
        maps.append(np.asarray(weighted)[0] / np.sum(shares))
    maps = np.float32(maps)[..., None]
    return tf.image.resize(maps, images.shape[1:3]).numpy() if upsample else maps


def activation_maximisation(model, target, films=1, steps=200, seed=0, step_size=0.02, smoothness=1.0):
    """Films that a model would call `target` with most conviction (Simonyan et al., 2014), by tf-keras-vis.

    Gradient ascent on the logit from grey noise, against total variation. Films stay in [0, 1]. What comes
    out is what the model looks for, rarely anything that looks like a film.

    Args:
        model: functional keras.Model of fixed input height and width.
        target: class index (an output unit).
        films: how many, each from its own noise.
        steps: of ascent.
        seed: of the noise; equal seeds give equal films on one machine.
        step_size: of RMSprop, in shares of the pixel range.
        smoothness: weight of total variation a pixel against the logit.

    Returns:
        float32 (films, H, W, C) in [0, 1].

    Raises:
        ImportError: tf-keras-vis is not installed.
        ValueError: target or input do not fit the model.
    """
    require_functional(model)
    shape, units = tuple(model.inputs[0].shape[1:]), model.outputs[0].shape[-1]
    if None in shape:
        raise ValueError(f"activation_maximisation needs a model of fixed input size, got {shape}")
    if isinstance(target, bool) or not isinstance(target, (int, np.integer)) or not 0 <= target < units:
        raise ValueError(
            f"target must be in 0..{units - 1}, the output units of {model.name!r}, got {target!r}"
        )
    maximise = _module("activation_maximization").ActivationMaximization
    variation = _module("activation_maximization.regularizers").TotalVariation2D(smoothness)
    noise = np.random.default_rng(seed).uniform(0.4, 0.6, (films, *shape)).astype("float32")
    return np.asarray(
        maximise(_LogitOf(model, int(target)))(
            lambda logits: logits[:, 0],
            seed_input=noise,
            input_range=(0.0, 1.0),
            # Its own jitter draws from NumPy's global generator, and its range is only kept at the end.
            input_modifiers=[lambda pixels: tf.clip_by_value(pixels, 0.0, 1.0)],
            regularizers=[variation],
            steps=steps,
            optimizer=keras.optimizers.RMSprop(step_size),
        )
    )


class _LogitOf:
    """What tf-keras-vis needs of a model, with one logit and a 0 as its output.

    Softmax over the two is the logit's sigmoid, and the logarithm of their ratio is the logit.
    """

    layers = ()
    outputs = (None,)

    def __init__(self, model, unit, batch_size=32):
        self.inputs = list(model.inputs)
        self._logits, self._unit, self._batch_size = _traced_logits(model), unit, batch_size

    def __call__(self, inputs, training=False):
        logit = self._logits(inputs[0])[:, self._unit]
        return tf.stack([logit, tf.zeros_like(logit)], axis=1)

    def predict(self, inputs, batch_size):
        films = np.float32(inputs[0])
        starts = range(0, len(films), self._batch_size)
        return np.concatenate([self([films[start : start + self._batch_size]]) for start in starts])


def _traced_logits(model):
    """The model's logits as a function that is traced once for as long as the model lives."""
    remembered = model.__dict__.setdefault("_kxray_explainers", {})
    if "logits" not in remembered:
        run = with_logits(model)
        signature = [tf.TensorSpec([None, *model.inputs[0].shape[1:]], tf.float32)]
        remembered["logits"] = tf.function(lambda films: run(films)[0], input_signature=signature)
    return remembered["logits"]


def _module(name):
    try:
        with warnings.catch_warnings():
            # It imports from a place in SciPy that SciPy will remove.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(f"tf_keras_vis.{name}")
    except ImportError as error:
        raise ImportError(
            f'score_cam and activation_maximisation need tf-keras-vis ({error}); pip install "kxray[vis]"'
        ) from error
