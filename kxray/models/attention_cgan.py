"""Attention multi-scale conditional GAN (Ann et al., 2020): films of a wanted class at 64, 128 and 256 px."""

import keras
import tensorflow as tf
from keras import layers, ops

from kxray.layers.self_attention import SelfAttention
from kxray.models._conditional_gan import ConditionalGAN

SMALLEST_SIDE = 64
# Channels grow towards the coarse maps, as far as this many times the width.
_MOST = 8


def build(
    num_classes=8,
    scales=3,
    latent=100,
    width=64,
    tau="schedule",
    attention_pool=1,
    spectral_generator=False,
    condition_gain=1.0,
    ema=False,
) -> ConditionalGAN:
    """Builds one generator with a branch a scale, and one discriminator a scale.

    Generator: latent z joined with the one-hot condition; four nearest-neighbour up-blocks from 4 x 4 to
    64 x 64; self-attention; a 3x3 convolution to the 64-px film. Each further branch joins the condition to
    the hidden map again, has two residual blocks and an up-block, and a 3x3 convolution to its film (Ann et
    al., 2020, figure 1; blocks after StackGAN++, Zhang et al., 2018). Discriminator: down-sampling blocks to
    4 x 4, then a head for the film alone and one for the film joined with the condition; spectral
    normalisation in every layer.

    Args:
        num_classes: classes that films are made of, at least 1.
        scales: 1 to 3: films of 64; 64 and 128; 64, 128 and 256 pixels.
        latent: length of z.
        width: filters of the generator at 64 px and of the discriminators' first layer.
        tau: "schedule" or "learned", see `kxray.layers.SelfAttention`.
        attention_pool: its `pool`.
        spectral_generator: whether the generator's convolutions are spectrally normalised, too.
        condition_gain: what the one-hot condition is multiplied by wherever it is joined. At 1, as in the
            paper, it is a small part of what the generator is given beside z, of length sqrt(latent).
        ema: whether a moving average of the generator is kept, which then makes the samples.

    Returns:
        `ConditionalGAN`, uncompiled, with random weights.

    Raises:
        ValueError: a number out of its range.
    """
    options = dict(
        num_classes=num_classes,
        scales=scales,
        latent=latent,
        width=width,
        tau=tau,
        attention_pool=attention_pool,
        spectral_generator=spectral_generator,
        condition_gain=condition_gain,
        ema=ema,
    )
    if scales not in (1, 2, 3):
        raise ValueError(f"scales must be 1, 2 or 3 (films of 64, 128, 256 pixels), got {scales}")
    for name, least in (("num_classes", 1), ("latent", 1), ("width", 4)):
        if options[name] < least:
            raise ValueError(f"{name} must be {least} or more, got {options[name]}")
    sides = [SMALLEST_SIDE * 2**scale for scale in range(scales)]
    if not condition_gain > 0:
        raise ValueError(f"condition_gain must be above 0, got {condition_gain}")

    def new_generator():
        return generator(
            num_classes,
            sides,
            latent,
            width,
            attention=(tau, attention_pool),
            spectral=spectral_generator,
            gain=condition_gain,
        )

    return ConditionalGAN(
        "attention_cgan",
        options,
        new_generator(),
        {side: discriminator(num_classes, side, width, condition_gain) for side in sides},
        new_generator() if ema else None,
    )


def generator(num_classes, sides, latent, width, *, attention, spectral, gain) -> keras.Model:
    """{"z" (N, latent), "condition" (N, num_classes)} -> {"film_64": (N, 64, 64, 1) in [-1, 1], ...}."""
    z = keras.Input((latent,), name="z")
    condition = keras.Input((num_classes,), name="condition")
    told = amplified(condition, gain)
    channels = [width * min(_MOST, 2**step) for step in (4, 3, 2, 1, 0)]
    x = layers.Concatenate(name="join_z")([z, told])
    x = layers.Dense(4 * 4 * channels[0], use_bias=False, name="project")(x)
    x = layers.Reshape((4, 4, channels[0]), name="map_4")(x)
    x = _normalized(x, "project")
    for side, count in zip((8, 16, 32, 64), channels[1:], strict=True):
        x = up_block(x, count, spectral, f"up_{side}")
    x = SelfAttention(*attention, name="attention")(x)
    films = {f"film_{sides[0]}": to_film(x, sides[0])}
    for step, side in enumerate(sides[1:], start=1):
        count = max(4, width // 2 ** (step - 1))
        x = join(x, told, f"join_{side}")
        x = _normalized(_conv(x, count, spectral, f"join_{side}_conv"), f"join_{side}")
        for number in (1, 2):
            x = residual_block(x, spectral, f"residual_{side}_{number}")
        x = up_block(x, max(4, width // 2**step), spectral, f"up_{side}")
        films[f"film_{side}"] = to_film(x, side)
    return keras.Model({"z": z, "condition": condition}, films, name="generator")


def discriminator(num_classes, side, width, gain) -> keras.Model:
    """{"film" (N, side, side, 1) in [-1, 1], "condition"} -> {"unconditional": (N,), "conditional": (N,)}."""
    film = x = keras.Input((side, side, 1), name="film")
    condition = keras.Input((num_classes,), name="condition")
    count = max(4, width * SMALLEST_SIDE // side)
    while x.shape[1] > 4:
        x = _spectral(layers.Conv2D(count, 4, 2, "same"), f"down_{x.shape[1] // 2}")(x)
        x = leaky_relu(x)
        count = min(2 * count, _MOST * width)
    joined = join(x, amplified(condition, gain), "join")
    joined = _spectral(layers.Conv2D(x.shape[-1], 3, padding="same"), "join_conv")(joined)
    joined = leaky_relu(joined)
    heads = {"unconditional": score(x, "unconditional"), "conditional": score(joined, "conditional")}
    return keras.Model({"film": film, "condition": condition}, heads, name=f"discriminator_{side}")


def up_block(x, channels, spectral, name):
    x = layers.UpSampling2D(2, interpolation="nearest", name=f"{name}_nearest")(x)
    return _normalized(_conv(x, channels, spectral, f"{name}_conv"), name)


def residual_block(x, spectral, name):
    inside = _normalized(_conv(x, x.shape[-1], spectral, f"{name}_conv1"), f"{name}_1")
    inside = _conv(inside, x.shape[-1], spectral, f"{name}_conv2")
    inside = batch_norm(inside, f"{name}_2_bn")
    return layers.Add(name=f"{name}_add")([x, inside])


def amplified(condition, gain):
    return condition if gain == 1 else layers.Rescaling(gain, name="condition_gain")(condition)


def join(x, condition, name):
    """The map with the condition as further channels, the same at every place."""
    height, width = x.shape[1:3]
    tiled = layers.Reshape((1, 1, condition.shape[-1]), name=f"{name}_condition")(condition)
    tiled = layers.UpSampling2D((height, width), name=f"{name}_everywhere")(tiled)
    return layers.Concatenate(name=name)([x, tiled])


def batch_norm(x, name):
    # Over the films of all devices, where there are several: as one device would.
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return layers.BatchNormalization(momentum=0.9, synchronized=several, name=name)(x)


def to_film(x, side):
    # Float32 under any dtype policy: half precision has no 16 bits of grey.
    return layers.Conv2D(1, 3, padding="same", activation="tanh", dtype="float32", name=f"film_{side}")(x)


def score(x, name):
    x = _spectral(layers.Conv2D(1, x.shape[1]), f"{name}_conv")(x)
    x = layers.Reshape((), name=f"{name}_map")(x)
    return layers.Activation("linear", dtype="float32", name=name)(x)


def leaky_relu(x):
    # Not Keras's layer: TensorFlow's graph optimizer stumbles over its gradient, and says so.
    return ops.maximum(x, 0.2 * x)


def _conv(x, channels, spectral, name):
    layer = layers.Conv2D(channels, 3, padding="same", use_bias=False)
    if spectral:
        return _spectral(layer, name)(x)
    layer.name = name
    return layer(x)


def _spectral(layer, name):
    return layers.SpectralNormalization(layer, name=name)


def _normalized(x, name):
    x = batch_norm(x, f"{name}_bn")
    return layers.ReLU(name=f"{name}_relu")(x)
