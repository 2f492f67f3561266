"""The frontal / lateral view classifier: 105,761 parameters (Choe & Jo, 2020, table 1)."""

import keras
from keras import layers


def build(image_size=(64, 64), name="view_cnn") -> keras.Model:
    """Builds the network of the paper's table, layer by layer.

    The paper's first convolution has 448 = 3 x 3 x 3 x 16 + 16 parameters: it reads three colour channels.
    A film has one, so `repeat_channel` copies it three times, which adds no parameter and keeps the table.

    Args:
        image_size: (height, width) of the input in pixels. The default is the paper's; other sizes change
            only what the average pooling sees, at least 64 x 64.
        name: the model's name.

    Returns:
        keras.Model from float (N, height, width, 1) in [0, 1], bone bright, to (N, 1): the probability
        of a lateral view, always float32. The stages are named `conv2d_1` ...
        `conv2d_4`.
    """
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
        raise ValueError(f"image_size must be (height, width) in pixels, got {image_size!r}")
    height, width = image_size
    if min(height, width) < 64:
        raise ValueError(f"view_cnn needs at least 64 x 64 pixels, got image_size={tuple(image_size)}")
    film = keras.Input((height, width, 1), name="film")
    x = layers.Concatenate(name="repeat_channel")([film, film, film])
    for stage, filters in enumerate((16, 32, 64), start=1):
        x = layers.Conv2D(filters, 3, activation="relu", name=f"conv2d_{stage}")(x)
        x = layers.MaxPooling2D(2, name=f"max_pooling2d_{stage}")(x)
    x = layers.Conv2D(128, 3, activation="relu", name="conv2d_4")(x)
    x = layers.AveragePooling2D(x.shape[1:3], name="average_pooling2d_1")(x)
    x = layers.Flatten(name="flatten_1")(x)
    x = layers.Dense(64, activation="relu", name="dense_1")(x)
    # Float32 under any dtype policy: a half-precision sigmoid saturates at ordinary confidence.
    x = layers.Dense(1, activation="sigmoid", dtype="float32", name="dense_2")(x)
    return keras.Model(film, x, name=name)
