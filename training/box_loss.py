"""Few boxes teach a network where to look: the evidence of a finding belongs inside its box."""

import keras
from keras import ops

from training.finding_loss import FindingsCrossentropy

# Shares whose logarithm must be a number.
_NOTHING = 1e-9


@keras.saving.register_keras_serializable("kxray")
class FindingsAndBoxes(keras.losses.Loss):
    """`FindingsCrossentropy`, and for films with a box how far their evidence is from filling it.

    The second term is the mean over the films of a batch that have a box, however few these are.

    Args:
        num_labels: L findings.
        evidence_size: (h, w) of the evidence maps, which lie in the film's frame.
        box_weight: of the second term.

    Call arguments:
        y_true: float (N, 6 L): `weighted_targets`, then a box a finding as `kxray.data.pipeline` moves them,
            x, y, width, height in shares of the film, NaN for none. (N, 2 L): there are no boxes.
        y_pred: float (N, L + h w L), of `with_packed_evidence`.
    """

    def __init__(
        self,
        num_labels,
        evidence_size,
        box_weight,
        reduction="sum_over_batch_size",
        name="findings_and_boxes",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.num_labels = num_labels
        self.evidence_size = tuple(evidence_size)
        self.box_weight = box_weight

    def call(self, y_true, y_pred):
        labels = self.num_labels
        loss = FindingsCrossentropy().call(y_true[:, : 2 * labels], y_pred[:, :labels])
        if y_true.shape[-1] == 2 * labels:
            return loss
        evidence = ops.reshape(y_pred[:, labels:], (-1, *self.evidence_size, labels))
        boxes = ops.reshape(y_true[:, 2 * labels :], (-1, labels, 4))
        outside = evidence_outside(evidence, boxes, y_true[:, :labels])
        films, boxed = ops.shape(outside)[0], ops.sum(ops.cast(outside > 0, outside.dtype))
        return loss + self.box_weight * outside * (ops.cast(films, outside.dtype) / ops.maximum(boxed, 1.0))

    def get_config(self):
        fields = ("num_labels", "evidence_size", "box_weight")
        return {**super().get_config(), **{field: getattr(self, field) for field in fields}}


def with_packed_evidence(model) -> tuple:
    """A network from films to probabilities and evidence, side by side, that shares the weights of another.

    Args:
        model: of `kxray.models`, with evidence (`kxray.models.with_evidence`).

    Returns:
        (keras.Model to float32 (N, L + h w L), (h, w) of the evidence maps).
    """
    from keras import layers

    from kxray import models

    seen = models.with_evidence(model)
    evidence = seen.output["evidence"]
    flat = layers.Reshape((-1,), dtype="float32", name="packed_evidence")(evidence)
    packed = layers.Concatenate(dtype="float32", name="packed")([seen.output["probabilities"], flat])
    return keras.Model(seen.input, packed, name=f"{model.name}_with_evidence"), evidence.shape[1:3]


def evidence_outside(evidence, boxes, truths):
    """How far the positive evidence is from lying in the box, and in all of it; mean over a film's boxes.

    The divergence sum_x t(x) log(t(x) / q(x)) of two distributions over the cells: t is even over the box, by
    how much of each cell the box covers; q is the evidence by its softplus, so that none is lost where it is
    negative. It is at least -log of the share of q inside the box, and 0 where the evidence fills the box and
    nothing else. A box smaller than a cell asks for that cell.

    Args:
        evidence: float (N, h, w, L), signed, in the film's frame.
        boxes: float (N, L, 4): x, y, width, height in shares of the film; NaN for none.
        truths: float (N, L); only findings that are there (1) count.

    Returns:
        float32 (N,), 0 for a film without any box.
    """
    height, width = evidence.shape[1:3]
    covered = coverage(boxes, height, width)
    area = ops.sum(covered, axis=(1, 2), keepdims=True)
    counts = ops.cast(ops.logical_and(area[:, 0, 0] > 0, truths == 1), "float32")
    target = covered / ops.maximum(area, _NOTHING)
    positive = ops.softplus(ops.cast(evidence, "float32"))
    seen = positive / ops.maximum(ops.sum(positive, axis=(1, 2), keepdims=True), _NOTHING)
    distance = ops.log(ops.maximum(target, _NOTHING)) - ops.log(ops.maximum(seen, _NOTHING))
    losses = ops.sum(target * distance, axis=(1, 2)) * counts
    return ops.sum(losses, axis=1) / ops.maximum(ops.sum(counts, axis=1), 1.0)


def coverage(boxes, height, width):
    """How much of each cell of a grid lies inside boxes, float32 (N, height, width, L) in [0, 1].

    Args:
        boxes: float (N, L, 4): x, y, width, height in shares of the film. NaN covers nothing, nor does a box
            of which more than half lies outside of the film; of others, what lies on it does.
        height, width: of the grid.
    """
    boxes = ops.cast(boxes, "float32")
    known = ops.all(ops.isfinite(boxes), axis=-1, keepdims=True)
    boxes = ops.where(known, boxes, 0.0)
    start, length = boxes[..., :2], boxes[..., 2:]
    left = ops.clip(start + length, 0.0, 1.0) - ops.clip(start, 0.0, 1.0)
    # What augmentation moved off the film cannot be seen there. The tolerance is that of float32.
    there = ops.prod(left, axis=-1, keepdims=True) >= 0.4999 * ops.prod(length, axis=-1, keepdims=True)
    boxes = ops.where(there, boxes, 0.0)

    def along(start, length, cells):
        edges = ops.arange(cells, dtype="float32")
        low, high = start[:, None, :] * cells, (start + length)[:, None, :] * cells
        edges = edges[None, :, None]
        return ops.clip(ops.minimum(high, edges + 1) - ops.maximum(low, edges), 0.0, 1.0)

    rows = along(boxes[..., 1], boxes[..., 3], height)
    columns = along(boxes[..., 0], boxes[..., 2], width)
    return rows[:, :, None, :] * columns[:, None, :, :]
