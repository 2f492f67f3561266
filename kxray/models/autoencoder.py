"""An autoencoder of films: what `kxray.explain.latent_shift` moves films through."""

import keras
from keras import layers

# What `kxray.explain.encoder_decoder` cuts a model at.
_LATENT, _DECODED = "latent", "decoded"
_WIDEST = 256


def build(side=64, width=32, latent=64, depth=3, name="autoencoder") -> keras.Model:
    """Builds a convolutional autoencoder.

    Every stage halves the film and doubles the filters, with one residual block each (He et al., 2016); the
    decoder mirrors the encoder, with nearest-neighbour upsampling (Odena et al., 2016). No connection leads
    past the latent maps: what they do not hold is lost, and what they hold can be shifted.

    Args:
        side: of the films in pixels, or (height, width); multiples of 2^depth.
        width: filters next to the film.
        latent: maps of the latent space, each of a 2^depth-th of the film's side.
        depth: stages.

    Returns:
        keras.Model from float (N, height, width, 1) in [0, 1], bone bright, to the same in [0, 1], always
        float32. Its layers "latent" (N, height / 2^depth, width / 2^depth, latent) and "decoded" are what
        `kxray.explain.encoder_decoder` cuts it at.

    Raises:
        ValueError: films that the stages do not divide.
    """
    size = tuple(side) if isinstance(side, (tuple, list)) else (side, side)
    if depth < 1 or width < 1 or latent < 1:
        raise ValueError(f"depth, width and latent must be at least 1, got {depth}, {width} and {latent}")
    if len(size) != 2 or any(pixels < 1 or pixels % 2**depth for pixels in size):
        raise ValueError(
            f"an autoencoder of {depth} stages takes films of multiples of {2**depth} pixels, got {size}"
        )
    filters = [min(width * 2**stage, _WIDEST) for stage in range(depth)]
    film = keras.Input((*size, 1), name="film")
    x = layers.Conv2D(filters[0], 3, padding="same", name="stem")(film)
    for stage, count in enumerate(filters, start=1):
        stage_name = f"encode{stage}"
        x = layers.Conv2D(count, 4, 2, "same", name=f"{stage_name}_down")(x)
        x = residual_block(x, count, stage_name)
    # Float32 under any dtype policy: small shifts count.
    x = layers.Conv2D(latent, 1, dtype="float32", name=_LATENT)(x)
    x = layers.Conv2D(filters[-1], 1, name="unpack")(x)
    for stage, count in reversed(list(enumerate(filters, start=1))):
        stage_name = f"decode{stage}"
        x = residual_block(x, x.shape[-1], stage_name)
        x = layers.UpSampling2D(2, interpolation="nearest", name=f"{stage_name}_up")(x)
        x = layers.Conv2D(count, 3, padding="same", name=f"{stage_name}_conv")(x)
    x = layers.Activation("silu", name="last_silu")(layers.BatchNormalization(name="last_bn")(x))
    x = layers.Conv2D(1, 3, padding="same", activation="sigmoid", dtype="float32", name=_DECODED)(x)
    return keras.Model(film, x, name=name)


def residual_block(x, filters, name):
    """x + two convolutions, each after batch normalisation and SiLU (He et al., 2016b)."""
    new = x
    for number in (1, 2):
        new = layers.BatchNormalization(name=f"{name}_bn{number}")(new)
        new = layers.Activation("silu", name=f"{name}_silu{number}")(new)
        new = layers.Conv2D(filters, 3, padding="same", name=f"{name}_conv{number}")(new)
    return layers.Add(name=f"{name}_add")([x, new])
