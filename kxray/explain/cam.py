"""Class activation maps from gradients."""

import tensorflow as tf

from kxray.explain.graph import chosen_unit, feature_map, with_logits


def grad_cam(model, layer=None):
    """Grad-CAM (Selvaraju et al., 2017, eq. 1-2) before its final ReLU: evidence against keeps its sign.

    Args:
        model: functional model.
        layer: name of the layer whose (N, h, w, K) output is mapped; the last spatial one by default.

    Returns:
        Function (images (N, H, W, C), target int32 (N,)) -> dict of float32 tensors: `heatmap` (N, h, w, 1)
        and `logits` (N, L).
    """
    run = with_logits(model, feature_map(model, layer))

    def explain(images, target):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits, features = run(images)
            score = tf.reduce_sum(tf.gather(logits, chosen_unit(logits, target), axis=1, batch_dims=1))
        gradients = tf.cast(tape.gradient(score, features), tf.float32)
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        maps = tf.reduce_sum(weights * tf.cast(features, tf.float32), axis=-1, keepdims=True)
        return {"heatmap": maps, "logits": logits}

    return explain
