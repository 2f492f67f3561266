"""Conditional deep convolutional GAN: the baseline that the attention multi-scale GAN was compared with."""

import keras
from keras import layers

from kxray.models._conditional_gan import ConditionalGAN
from kxray.models.attention_cgan import batch_norm, join, leaky_relu

SIDES = (64, 128, 256)


def build(num_classes=8, side=64, latent=100, width=64, ema=False) -> ConditionalGAN:
    """Builds a DCGAN (Radford et al., 2016) whose networks are also told the class (Mirza & Osindero, 2014).

    Generator: z joined with the one-hot condition, transposed 4x4 convolutions of stride 2 with batch
    normalisation from 4 x 4 to the film, tanh. Discriminator: the film joined with the condition as further
    channels, 4x4 convolutions of stride 2 with batch normalisation and leaky ReLU, one logit. Cross-entropy.

    Args:
        num_classes: classes that films are made of, at least 1.
        side: 64, 128 or 256 pixels.
        latent: length of z.
        width: filters next to the film.
        ema: whether a moving average of the generator is kept, which then makes the samples.

    Returns:
        `kxray.models._conditional_gan.ConditionalGAN`, uncompiled, with random weights.

    Raises:
        ValueError: a number out of its range.
    """
    options = dict(num_classes=num_classes, side=side, latent=latent, width=width, ema=ema)
    if side not in SIDES:
        raise ValueError(f"side must be {', '.join(map(str, SIDES))} pixels, got {side}")
    for name, least in (("num_classes", 1), ("latent", 1), ("width", 4)):
        if options[name] < least:
            raise ValueError(f"{name} must be {least} or more, got {options[name]}")
    shape = (num_classes, side, latent, width)
    return ConditionalGAN(
        "cdcgan",
        options,
        generator(*shape),
        {side: discriminator(num_classes, side, width)},
        generator(*shape) if ema else None,
        loss="cross_entropy",
        apart=True,
    )


def generator(num_classes, side, latent, width) -> keras.Model:
    z = keras.Input((latent,), name="z")
    condition = keras.Input((num_classes,), name="condition")
    count = width * min(8, side // 8)
    x = layers.Concatenate(name="join_z")([z, condition])
    x = layers.Dense(4 * 4 * count, use_bias=False, name="project")(x)
    x = layers.Reshape((4, 4, count), name="map_4")(x)
    x = _normalized(x, "project")
    while x.shape[1] < side // 2:
        count = min(count, width * side // 4 // x.shape[1])
        x = _up(x, count, f"up_{2 * x.shape[1]}")
    x = layers.Conv2DTranspose(
        1, 4, 2, "same", activation="tanh", kernel_initializer=_start(), dtype="float32", name=f"film_{side}"
    )(x)
    return keras.Model({"z": z, "condition": condition}, {f"film_{side}": x}, name="generator")


def discriminator(num_classes, side, width) -> keras.Model:
    film = keras.Input((side, side, 1), name="film")
    condition = keras.Input((num_classes,), name="condition")
    x, count = join(film, condition, "join"), width
    while x.shape[1] > 4:
        name = f"down_{x.shape[1] // 2}"
        first = x.shape[1] == side
        x = layers.Conv2D(
            count, 4, 2, "same", use_bias=first, kernel_initializer=_start(), name=f"{name}_conv"
        )(x)
        # Neither network normalises next to the film (Radford et al., 2016).
        x = leaky_relu(x if first else batch_norm(x, f"{name}_bn"))
        count = min(2 * count, 8 * width)
    x = layers.Conv2D(1, 4, kernel_initializer=_start(), name="conditional_conv")(x)
    x = layers.Reshape((), name="conditional_map")(x)
    x = layers.Activation("linear", dtype="float32", name="conditional")(x)
    return keras.Model(
        {"film": film, "condition": condition}, {"conditional": x}, name=f"discriminator_{side}"
    )


def _up(x, count, name):
    x = layers.Conv2DTranspose(
        count, 4, 2, "same", use_bias=False, kernel_initializer=_start(), name=f"{name}_conv"
    )(x)
    return _normalized(x, name)


def _normalized(x, name):
    return layers.ReLU(name=f"{name}_relu")(batch_norm(x, f"{name}_bn"))


def _start():
    return keras.initializers.RandomNormal(stddev=0.02)
