"""One unit for two labels, or one unit a label: the same model, told in two ways."""

import keras
from keras import layers, ops

from kxray.explain.graph import called_with
from kxray.explain.head import logit_layer


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
    both.set_weights(
        [ops.convert_to_numpy(ops.concatenate([-weight, weight], axis=-1)) for weight in dense.weights]
    )
    return keras.Model(model.input, logits, name=model.name)
