"""The loss of findings: unknown ones add nothing, rare ones count more, and answers stay probabilities."""

import keras
import numpy as np
from keras import layers, ops

from kxray.layers import LayerRelevance
from kxray.layers.disease_attention import DiseaseAttention

# Without a cap, two films with a finding among a thousand would be the whole loss.
LARGEST_WEIGHT = 20.0


@keras.saving.register_keras_serializable("kxray")
class FindingsCrossentropy(keras.losses.Loss):
    """Weighted binary cross-entropy of findings, mean over all of them.

    The weights come with the targets, because they differ by film and finding: 0 where a finding is unknown.

    Call arguments:
        y_true: float (N, 2 L) of `weighted_targets`.
        y_pred: probabilities float (N, L).
    """

    def __init__(self, reduction="sum_over_batch_size", name="findings_crossentropy", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        truths, weights = ops.split(y_true, 2, axis=-1)
        return ops.mean(weights * ops.binary_crossentropy(truths, y_pred), axis=-1)


def positive_weights(truths) -> np.ndarray:
    """Weight of a film with a finding, beside 1 for one without: negatives / positives, float (L,).

    With it both have the same say in the loss. It is at least 1 / LARGEST_WEIGHT and at most LARGEST_WEIGHT,
    and 1 for a finding of which the training films know only one side.

    Args:
        truths: float (N, L) of the training films alone: 1, 0 or NaN (unknown).
    """
    positives, negatives = (np.asarray(truths) == 1).sum(axis=0), (np.asarray(truths) == 0).sum(axis=0)
    weights = np.clip(negatives / np.maximum(positives, 1), 1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
    return np.where((positives > 0) & (negatives > 0), weights, 1.0)


def weighted_targets(truths, weights) -> np.ndarray:
    """What `FindingsCrossentropy` takes, float32 (N, 2 L): truths, then the weight of each in the loss.

    Args:
        truths: float (N, L): 1, 0 or NaN (unknown).
        weights: float (L,), of `positive_weights`.
    """
    truths = np.asarray(truths)
    of_each = np.where(truths == 1, weights, 1.0) * np.isfinite(truths)
    return np.concatenate([np.nan_to_num(truths), of_each], axis=1).astype(np.float32)


def take_back_weights(model, weights) -> None:
    """Lowers the biases behind a model's logits by log(weights), float (L,).

    Positives that count w times as often raise the log odds by log w; without that, probabilities are those
    of the films as they are (King & Zeng, 2001, section 4.1, prior correction).

    Args:
        model: whose layer `logits` is dense with a bias, or whose logits are those of a `LayerRelevance` over
            dense layers `logits_<stage>`; a `DiseaseAttention` counts as such a layer.
        weights: that it was trained with.
    """
    offsets = np.log(weights)
    for layer in model.layers:
        if isinstance(layer, LayerRelevance):
            # sum_s pi_s (b_s - offset / sum_s pi_s) = sum_s pi_s b_s - offset
            offsets = offsets / ops.convert_to_numpy(layer.relevance()).sum(axis=0)
    heads = [
        layer
        for layer in model.layers
        if isinstance(layer, DiseaseAttention)
        or (isinstance(layer, layers.Dense) and layer.name.partition("_")[0] == "logits")
    ]
    if not heads or not all(getattr(layer, "use_bias", True) for layer in heads):
        raise ValueError(f"model {model.name!r}: expected dense layers called logits, with biases")
    for layer in heads:
        layer.bias.assign(layer.bias.numpy() - offsets.astype("float32"))
