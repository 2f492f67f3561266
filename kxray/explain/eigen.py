"""Eigen-CAM: where the features are strong, whatever the class."""

import numpy as np
import tensorflow as tf

from kxray.explain.graph import feature_map, require_functional
from kxray.explain.head import with_logits


def eigen_cam(model, images, layer=None, centre=False, upsample=False):
    """Eigen-CAM (Muhammad and Yeasin, 2020): features projected on their first principal direction.

    It asks for no class and uses no gradient: it shows what stands out, not what decides.

    Args:
        model: functional keras.Model.
        images: float array (N, H, W, C), the model's own input.
        layer: name of the layer whose (N, h, w, K) output is mapped; the last spatial one by default.
        centre: whether the mean over the film is subtracted from every feature first, as pytorch-grad-cam
            does; the paper does not.
        upsample: whether maps are resized (bilinear) to the films' height and width.

    Returns:
        float32 (N, h, w, 1), raw. A principal direction has no sign of its own: here the strongest place of a
        map is positive.

    Raises:
        ValueError: no such layer, or no functional model.
    """
    require_functional(model)
    films = tf.constant(np.asarray(images, np.float32))
    features = np.asarray(with_logits(model, feature_map(model, layer))(films)[1]).astype(np.float64)
    count, height, width, channels = features.shape
    table = features.reshape(count, height * width, channels)
    if centre:
        table = table - table.mean(axis=1, keepdims=True)
    directions = np.linalg.svd(table, full_matrices=False)[2][:, 0]
    maps = np.einsum("npk,nk->np", table, directions)
    strongest = np.take_along_axis(maps, np.abs(maps).argmax(axis=1, keepdims=True), axis=1)
    maps = np.where(strongest < 0, -maps, maps).reshape(count, height, width, 1).astype(np.float32)
    return tf.image.resize(maps, films.shape[1:3]).numpy() if upsample else maps
