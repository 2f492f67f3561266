"""The one place where film pixels become network input."""

import keras

from kxray.spec import ModelSpec


def film_input(spec: ModelSpec) -> keras.layers.Layer:
    """Returns the layer that applies `spec.pixel_rule` to films of any size.

    `"unit_stretch"`: float32 pixels in [0, 1], shape (N, H, W, 1) with any H and W, stretched to
    `spec.image_size` by bilinear interpolation with antialiasing, so that a 3,000-pixel film loses no
    energy to aliasing. `kxray.io.resize.resize` is the same rule outside of a graph, to 1e-5.
    """
    height, width = spec.image_size
    return keras.layers.Resizing(
        height, width, interpolation="bilinear", antialias=True, dtype="float32", name="film_input"
    )
