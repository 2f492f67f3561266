"""Class activation maps: a spatial feature map, weighted by what each feature does to the logit.

All of them are (N, h, w, 1) at the feature map's resolution, signed and raw: before the final ReLU and any
normalisation. A_k is feature k of K, g_k = d logit / d A_k.
"""

import numbers

import numpy as np
import tensorflow as tf
from keras import layers

from kxray.explain.graph import called_with, chosen_unit, feature_map
from kxray.explain.head import logit_layer, wide, with_logits

_HEADS = (layers.Dropout, layers.Flatten, layers.Reshape)


def cam(model):
    """CAM (Zhou et al., 2016, eq. 2): sum_k w_ck A_k with the weights w of the last Dense layer.

    Needs no gradients. Where it can be had, logit_c = mean of the map + bias, and Grad-CAM and HiResCAM of
    the same features are this map divided by its number of pixels.

    Args:
        model: functional model that ends in GlobalAveragePooling2D and a Dense layer (Dropout, Flatten or
            Reshape between them change nothing).

    Returns:
        Function (images (N, H, W, C), target int32 (N,)) -> dict of float32 tensors: `heatmap` (N, h, w, 1)
        and `logits` (N, L).

    Raises:
        ValueError: a model with another end.
    """
    dense, features = _pooled_head(model)
    run = with_logits(model, features)

    def explain(images, target):
        logits, features = run(images)
        features = wide(features)
        weights = tf.gather(tf.transpose(tf.cast(dense.kernel, features.dtype)), chosen_unit(logits, target))
        return {"heatmap": _weighted_sum(weights[:, None, None, :], features), "logits": logits}

    return explain


def grad_cam(model, layer=None):
    """Grad-CAM (Selvaraju et al., 2017, eq. 1-2): sum_k mean(g_k) A_k.

    Before its final ReLU: evidence against keeps its sign.

    Args:
        model: functional model.
        layer: name of the layer whose (N, h, w, K) output is mapped; the last spatial one by default.

    Returns:
        See `cam`.
    """

    def combine(features, slopes):
        return _weighted_sum(tf.reduce_mean(slopes, axis=(1, 2), keepdims=True), features)

    return _of_features(model, layer, combine)


def grad_cam_pp(model, layer=None, epsilon=0.0):
    """Grad-CAM++ (Chattopadhay et al., 2018, eq. 5 and 19): sum_k w_k A_k, w_k = sum_ij a_kij ReLU(g_kij).

    a_kij = g^2 / (2 g^2 + sum_ij A_k g^3), which for g > 0 is 1 / (2 + g sum_ij A_k); elsewhere ReLU(g) = 0
    and a does not count. Where features are negative enough to turn the denominator over, a is 0.

    Args:
        model, layer: see `grad_cam`; the features should follow a ReLU.
        epsilon: added to the denominator of the first form. pytorch-grad-cam has 1e-6, which silences
            features whose gradients are below about 1e-3.

    Returns:
        See `cam`.
    """
    if not isinstance(epsilon, numbers.Real) or isinstance(epsilon, bool) or not 0 <= epsilon < np.inf:
        raise ValueError(f"grad_cam_pp needs an epsilon of at least 0, got {epsilon!r}")

    def combine(features, slopes):
        rising = tf.nn.relu(slopes)
        denominator = 2 + rising * tf.reduce_sum(features, axis=(1, 2), keepdims=True)
        # g^2 is divided out, so that small gradients do not underflow.
        if epsilon:
            denominator += tf.math.divide_no_nan(tf.cast(epsilon, rising.dtype), rising**2)
        shares = tf.where(denominator > 0, tf.math.divide_no_nan(rising, denominator), 0)
        return _weighted_sum(tf.reduce_sum(shares, axis=(1, 2), keepdims=True), features)

    return _of_features(model, layer, combine)


def layer_cam(model, layer=None):
    """LayerCAM (Jiang et al., 2021, eq. 5-6): sum_k ReLU(g_k) A_k, pixel by pixel; suits shallow layers too.

    Args, returns: see `grad_cam`.
    """
    return _of_features(model, layer, lambda features, slopes: _weighted_sum(tf.nn.relu(slopes), features))


def hires_cam(model, layer=None):
    """HiResCAM (Draelos and Carin, 2020, eq. 5): sum_k g_k A_k, pixel by pixel, without averaging.

    Where one linear layer follows the features, it adds up to logit - bias.

    Args, returns: see `grad_cam`.
    """
    return _of_features(model, layer, lambda features, slopes: _weighted_sum(slopes, features))


def _of_features(model, layer, combine):
    run = with_logits(model, feature_map(model, layer))

    def explain(images, target):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits, features = run(images)
            score = tf.reduce_sum(tf.gather(logits, chosen_unit(logits, target), axis=1, batch_dims=1))
        slopes = tape.gradient(score, features, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return {"heatmap": combine(wide(features), wide(slopes)), "logits": logits}

    return explain


def _weighted_sum(weights, features):
    return tf.reduce_sum(weights * features, axis=-1, keepdims=True)


def _pooled_head(model):
    """The Dense layer that gives the logits, and the symbolic features whose averages it weighs."""
    last = logit_layer(model)
    if not isinstance(last, layers.Dense):
        raise ValueError(
            f"cam needs a Dense layer at the end, model {model.name!r} has {last.name!r} there; take grad_cam"
        )
    (pooled,) = called_with(model, last)
    pool = pooled._keras_history.operation
    while isinstance(pool, _HEADS):
        (pooled,) = called_with(model, pool)
        pool = pooled._keras_history.operation
    if not isinstance(pool, layers.GlobalAveragePooling2D):
        raise ValueError(
            f"cam needs a GlobalAveragePooling2D before {last.name!r}, model {model.name!r} has "
            f"{pool.name!r} there; take grad_cam"
        )
    (features,) = called_with(model, pool)
    return last, features
