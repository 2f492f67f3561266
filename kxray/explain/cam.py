"""Class activation maps from gradients."""

import tensorflow as tf

from kxray.explain.graph import last_feature_layer, with_logits


def grad_cam(model, layer=None):
    """Grad-CAM (Selvaraju et al., 2017, eq. 1-2) before its final ReLU: evidence against keeps its sign.

    Args:
        model: functional model.
        layer: name of the layer whose (N, h, w, K) output is mapped; the last spatial one by default.

    Returns:
        Function (images (N, H, W, C), target int32 (N,)) -> float32 (N, h, w, 1).
    """
    if layer is None:
        feature_layer = last_feature_layer(model)
    else:
        known = [candidate.name for candidate in model.layers]
        if layer not in known:
            raise ValueError(f"model {model.name!r} has no layer {layer!r}; it has: {', '.join(known)}")
        feature_layer = model.get_layer(layer)
        if len(feature_layer.output.shape) != 4:
            raise ValueError(
                f"layer {layer!r} gives {tuple(feature_layer.output.shape)}; "
                "Grad-CAM needs a (N, h, w, K) output"
            )
    run = with_logits(model, feature_layer.output)

    def explain(images, target):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits, features = run(images)
            score = tf.reduce_sum(tf.gather(logits, target, axis=1, batch_dims=1))
        gradients = tf.cast(tape.gradient(score, features), tf.float32)
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        return tf.reduce_sum(weights * tf.cast(features, tf.float32), axis=-1, keepdims=True)

    return explain
