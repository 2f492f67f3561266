"""Binary models have one unit for two labels; this explains each label."""

import keras
import tensorflow as tf
from keras import layers, ops

from kxray.explain.attribution import detailed_explainer
from kxray.explain.graph import called_with
from kxray.explain.head import logit_layer

# What these methods show of -z (evidence: its box) is not what they show of z with its sign turned.
_RECTIFIED = ("guided_backprop", "grad_cam_pp", "layer_cam", "rap", "evidence")


def binary_explainer(model, method, **options):
    """Builds a function that explains either label of a model of one sigmoid unit.

    Args:
        model: functional model with one output unit, the logit z of its second label.
        method, **options: see `kxray.explain.explainer`.

    Returns:
        Function (images float32 (N, H, W, C), label int32 (N,): 0, 1, or -1 for the predicted one) -> dict of
        `kxray.explain.detailed_explainer`; its `logits` are z, (N, 1). It holds a copy of the last layer's
        weights, which its method `refresh()` renews.

    Raises:
        ValueError: see `kxray.explain.explainer`; or a method that is not odd in the score, for a model whose
            logit no Dense layer gives.
    """
    if not isinstance(logit_layer(model), layers.Dense):
        if method in _RECTIFIED:
            raise ValueError(
                f"{method} explains label 0 of {model.name!r} only where a Dense layer of one unit gives its "
                "logit; give the model a unit a label, or take another method"
            )
        return _turning(detailed_explainer(model, method, **options))
    both = with_a_unit_a_label(model)
    explain = detailed_explainer(both, method, **options)

    def of_label(images, label):
        found = explain(images, label)
        return {**found, "logits": found["logits"][:, 1:]}

    of_label.refresh = lambda: _copy(logit_layer(model), logit_layer(both))
    return of_label


def _turning(explain):
    """What speaks against the unit speaks for label 0: the sign of maps turns, and of errors with them.

    By their names those are the heatmap and everything called ..._map, ..._maps or ..._error.
    """

    def of_label(images, label):
        found = explain(images, tf.zeros_like(label))
        predicted = tf.cast(found["logits"][:, 0] > 0, tf.int32)
        sign = tf.where(tf.where(label < 0, predicted, label) == 1, 1.0, -1.0)
        return {
            name: tf.reshape(sign, [-1] + [1] * (value.shape.rank - 1)) * value
            if name.endswith(("map", "maps", "error"))
            else value
            for name, value in found.items()
        }

    of_label.refresh = lambda: None
    return of_label


def with_a_unit_a_label(model) -> keras.Model:
    """A model of one sigmoid unit as one with a unit for each of its two labels.

    Its logits are (-z, z). For label 0, maps that are odd in the score are those of unit 0 with their sign
    turned; rectified ones, such as LayerCAM's or guided backpropagation's, are not, and need a unit.

    Args:
        model: functional model with one output unit, whose logit is that of a Dense layer.

    Returns:
        keras.Model from the same input to logits (N, 2); it shares all layers but the last, of which it holds
        a copy as it is now.

    Raises:
        ValueError: several units, or a logit that is no Dense layer's.
    """
    dense = logit_layer(model)
    if not isinstance(dense, layers.Dense) or dense.units != 1:
        raise ValueError(
            f"expected a model that ends in a Dense layer of one unit, {model.name!r} ends in "
            f"{dense.name!r}, {type(dense).__name__}"
        )
    (before,) = called_with(model, dense)
    both = layers.Dense(2, use_bias=dense.use_bias, dtype=dense.dtype_policy, name=f"{dense.name}_of_labels")
    logits = both(before)
    _copy(dense, both)
    return keras.Model(model.input, logits, name=model.name)


def _copy(dense, both):
    weights = [ops.concatenate([-weight, weight], axis=-1) for weight in dense.weights]
    both.set_weights([ops.convert_to_numpy(weight) for weight in weights])
