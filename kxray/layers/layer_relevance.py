"""One learned weight a stage and class, and the convex combination of stage logits that it makes."""

import keras
from keras import ops

CONSTRAINTS = ("softmax", "penalty")


@keras.saving.register_keras_serializable("kxray")
class LayerRelevance(keras.layers.Layer):
    """Combines the class logits of several network stages: logit_c = sum_s pi_sc logit_sc.

    The layer relevance weights pi are those of Sedai et al. (2018): learned for every class, non-negative,
    summing to one over the stages.

    Args:
        constraint: how the weights are kept convex. `"softmax"`: pi = softmax over the stages of free
            parameters, convex at every step. `"penalty"`: pi is free and the loss gains
            penalty * sum_c [(sum_s pi_sc - 1)^2 + sum_s max(-pi_sc, 0)^2], a regularisation term as in the
            multi-scale CAM DenseNet paper, whose own formula is not legible in print; `distance_from_convex`
            says how far from convex it ended.
        penalty: weight of that term, >= 0; without meaning for "softmax".

    Call arguments:
        stage_logits: list of S float tensors (N, C), the class logits of each stage.

    Returns:
        Float tensor (N, C), in the layer's dtype.

    Raises:
        ValueError: an unknown constraint, a negative penalty, or logits of unequal shapes.
    """

    def __init__(self, constraint="softmax", penalty=1.0, **kwargs):
        super().__init__(**kwargs)
        if constraint not in CONSTRAINTS:
            raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got {constraint!r}")
        if penalty < 0:
            raise ValueError(f"penalty must be 0 or more, got {penalty}")
        self.constraint = constraint
        self.penalty = penalty

    def build(self, input_shape):
        if not isinstance(input_shape, (list, tuple)) or not isinstance(input_shape[0], (list, tuple)):
            raise ValueError(f"expected a list of stage logits (N, C), got one tensor of {input_shape}")
        if any(len(shape) != 2 or shape[-1] != input_shape[0][-1] for shape in input_shape):
            raise ValueError(f"expected stage logits of one shape (N, C), got {[*map(tuple, input_shape)]}")
        stages, classes = len(input_shape), input_shape[0][-1]
        start = "zeros" if self.constraint == "softmax" else keras.initializers.Constant(1 / stages)
        # One stage has nothing to share out: its weight is 1.
        free = self.constraint == "penalty" or stages > 1
        self.scores = self.add_weight((stages, classes), initializer=start, trainable=free, name="scores")

    def relevance(self):
        """The weights pi, float tensor (S, C) in stage order."""
        if self.constraint == "penalty":
            return self.scores + 0.0
        return ops.softmax(self.scores, axis=0) if self.scores.shape[0] > 1 else ops.ones_like(self.scores)

    def distance_from_convex(self) -> float:
        """The largest violation over all classes: |sum of the weights - 1|, or a negative weight's size."""
        weights = ops.convert_to_numpy(self.relevance())
        return float(max(abs(weights.sum(axis=0) - 1).max(), (-weights).max(), 0.0))

    def call(self, stage_logits):
        weights = ops.cast(self.relevance(), self.compute_dtype)
        if self.constraint == "penalty":
            pi = ops.cast(self.scores, "float32")
            off_one = ops.sum(ops.square(ops.sum(pi, axis=0) - 1.0))
            below_zero = ops.sum(ops.square(ops.maximum(-pi, 0.0)))
            self.add_loss(self.penalty * (off_one + below_zero))
        return ops.sum(weights[None] * ops.stack(stage_logits, axis=1), axis=1)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])

    def get_config(self):
        return {**super().get_config(), "constraint": self.constraint, "penalty": self.penalty}
