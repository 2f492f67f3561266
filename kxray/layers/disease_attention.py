"""Attention pooling, a map and a logit for each disease, guided by where the disease is likely."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("kxray")
class DiseaseAttention(keras.layers.Layer):
    """Gives each disease its own look at the features, weighed by the places where the disease is likely.

    For disease c, feature vector f at position x of P positions, and the probability mask m in [0, 1]:

        soft mask    s_c(x) = floor + (1 - floor) * m_c(x) ^ gamma_c
        attention    alpha_c = softmax over x of (f(x) . a_c + log s_c(x))
        evidence     e_c(x) = P * alpha_c(x) * f(x) . p_c
        logit        z_c = mean of e_c over x + bias_c

    So the soft mask is the prior of an attention pooling (Ilse et al., 2018, eq. 8, without its hidden
    layer): without learned attention, alpha is the mask itself, made to sum to one. The signed evidence
    accounts for the logit exactly, and with a mask of one value everywhere the mask has no part in it. As the
    floor is above 0, no place is out of sight. gamma (> 0) says how sharply the mask counts, and is learned.

    Args:
        num_labels: L, number of diseases, at least 1.
        floor: what the mask leaves of a place where the disease never is, in (0, 1].
        gamma: what the exponents start at, above 0.
        mask_size: m, side of the grid that masks are kept on; in the graph they are resized to the features'
            grid, bilinearly and with antialiasing.

    Weights: `projection` and `attention` (K, L), `bias` (L,), `gamma_scores` (L,), of which gamma is the
    softplus; `masks` (m, m, L), not trained, ones until `set_masks`.

    Call arguments:
        features: float tensor (N, h, w, K), h and w known.

    Returns:
        dict of float tensors: `logits` (N, L), and `evidence` (N, h, w, L), signed.

    Raises:
        ValueError: numbers outside of their range, or features of another shape.
    """

    def __init__(self, num_labels, floor=0.1, gamma=1.0, mask_size=64, **kwargs):
        super().__init__(**kwargs)
        if num_labels < 1 or mask_size < 1:
            raise ValueError(f"expected at least 1 label and 1 pixel of mask, got {num_labels}, {mask_size}")
        if not 0 < floor <= 1:
            raise ValueError(f"floor must be above 0 and at most 1, got {floor}")
        if not gamma > 0:
            raise ValueError(f"gamma must be above 0, got {gamma}")
        self.num_labels, self.floor, self.gamma, self.mask_size = num_labels, floor, gamma, mask_size

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(f"expected features (N, h, w, K) of known size, got {tuple(input_shape)}")
        kernel, labels = (input_shape[-1], self.num_labels), (self.num_labels,)
        self.projection = self.add_weight(kernel, initializer="glorot_uniform", name="projection")
        self.attention = self.add_weight(kernel, initializer="zeros", name="attention")
        self.bias = self.add_weight(labels, initializer="zeros", name="bias")
        start = keras.initializers.Constant(float(np.log(np.expm1(self.gamma))))
        self.gamma_scores = self.add_weight(labels, initializer=start, name="gamma_scores")
        shape = (self.mask_size, self.mask_size, self.num_labels)
        self.masks = self.add_weight(shape, initializer="ones", trainable=False, name="masks")

    def set_masks(self, maps) -> None:
        """Sets the probability masks.

        Args:
            maps: float (L, m', m'), in [0, 1], upright in the aligned frame; another m' than the layer's is
                resized.

        Raises:
            ValueError: another number of masks, or values that are no probabilities.
        """
        maps = np.asarray(maps)
        if maps.ndim != 3 or len(maps) != self.num_labels or 0 in maps.shape:
            raise ValueError(f"expected {self.num_labels} masks (labels, m, m), got an array {maps.shape}")
        if not (np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1):
            raise ValueError("masks must be finite and in [0, 1]")
        maps = np.moveaxis(maps.astype("float32"), 0, -1)
        self.masks.assign(_resized(ops.convert_to_tensor(maps), (self.mask_size, self.mask_size)))

    def exponents(self):
        """gamma, float tensor (L,), above 0."""
        return ops.softplus(self.gamma_scores)

    def soft_masks(self, size):
        """The soft masks of all diseases on a grid of `size`, (h, w, L), in [floor, 1]."""
        masks = _resized(ops.cast(self.masks, "float32"), size)
        # 0 ^ gamma is 0, but its slope by way of the logarithm would not be a number.
        seen = masks > 0
        powers = ops.exp(ops.cast(self.exponents(), "float32") * ops.log(ops.where(seen, masks, 1.0)))
        return self.floor + (1 - self.floor) * ops.where(seen, powers, 0.0)

    def call(self, features):
        height, width = features.shape[1:3]
        projected = ops.matmul(features, ops.cast(self.projection, self.compute_dtype))
        scores = ops.matmul(features, ops.cast(self.attention, self.compute_dtype))
        scores += ops.cast(ops.log(self.soft_masks((height, width))), self.compute_dtype)
        flat = ops.reshape(scores, (-1, height * width, self.num_labels))
        attention = ops.reshape(ops.softmax(flat, axis=1), (-1, height, width, self.num_labels))
        evidence = height * width * attention * projected
        logits = ops.mean(evidence, axis=(1, 2)) + ops.cast(self.bias, self.compute_dtype)
        return {"logits": logits, "evidence": evidence}

    def compute_output_shape(self, input_shape):
        count, height, width, _ = input_shape
        return {"logits": (count, self.num_labels), "evidence": (count, height, width, self.num_labels)}

    def get_config(self):
        fields = ("num_labels", "floor", "gamma", "mask_size")
        return {**super().get_config(), **{field: getattr(self, field) for field in fields}}


def _resized(masks, size):
    """(m, m, L) -> (h, w, L), still in [0, 1]."""
    if tuple(masks.shape[:2]) == tuple(size):
        return masks
    resized = ops.image.resize(masks, size, interpolation="bilinear", antialias=True)
    return ops.clip(resized, 0.0, 1.0)
