"""Counterfactual GAN: what would have to change in a film for a classifier to say something else."""

import keras
from keras import layers, ops

from kxray.layers.self_attention import SelfAttention
from kxray.models._counterfactual import CounterfactualGAN
from kxray.models.attention_cgan import discriminator, join

_HALVINGS = 3
_GROUPS = 8
# A mask that begins small: what need not change is not changed from the first step on.
_FIRST_MASK = -2.0


def build(
    num_targets=2,
    side=64,
    width=16,
    amplitude=1.0,
    attention=True,
    residual=True,
    self_attention=True,
    ema=False,
) -> CounterfactualGAN:
    """Builds a generator of counterfactual films and its discriminator.

    Generator: an encoder-decoder with skip connections on the film and the one-hot target, which is told
    again at the coarsest maps, self-attention there; two heads, a residual r = amplitude * tanh(.) and an
    attention mask a = sigmoid(.) of one channel; y = clip(x + a * r, 0, 1). Discriminator: that of
    `attention_cgan` at one scale, told the target, spectrally normalised. No public paper describes the
    slides' network ("attention GAN with a residual connection"); this is the union of the published forms:
    VA-GAN's additive map (Baumgartner et al., 2018), Fixed-Point GAN's identity (Siddiquee et al., 2019),
    GANimation's mask (Pumarola et al., 2018), GANterfactual's classifier term (Mertes et al., 2022).

    Args:
        num_targets: T, what films can be changed to, see `kxray.explain.targets_of`.
        side: of the films in pixels, a multiple of 8 from 32 on: the classifier's own input.
        width: filters next to the film.
        amplitude: largest change of a pixel, in (0, 1].
        attention: whether there is a mask; False: a = 1 everywhere.
        residual: whether the film itself is kept below the change; False: y is drawn anew, and a = 1.
        self_attention: whether the coarsest maps have a `kxray.layers.SelfAttention` with a learned tau.
        ema: whether a moving average of the generator is kept, which then makes the counterfactuals.

    Returns:
        `CounterfactualGAN`, uncompiled, with random weights.

    Raises:
        ValueError: a number out of its range.
    """
    options = dict(
        num_targets=num_targets,
        side=side,
        width=width,
        amplitude=amplitude,
        attention=attention,
        residual=residual,
        self_attention=self_attention,
        ema=ema,
    )
    if side % 2**_HALVINGS or side < 32:
        raise ValueError(f"side must be a multiple of {2**_HALVINGS} pixels from 32 on, got {side}")
    for name, least in (("num_targets", 1), ("width", 4)):
        if options[name] < least:
            raise ValueError(f"{name} must be {least} or more, got {options[name]}")
    if not 0 < amplitude <= 1:
        raise ValueError(f"amplitude must be above 0 and at most 1, got {amplitude}")
    shape = (num_targets, side, width)
    heads = {"amplitude": amplitude, "attention": attention and residual, "residual": residual}

    def new_generator():
        return generator(*shape, self_attention=self_attention, **heads)

    return CounterfactualGAN(
        options,
        new_generator(),
        {side: discriminator(num_targets, side, width, gain=1.0)},
        new_generator() if ema else None,
    )


def generator(num_targets, side, width, *, self_attention, amplitude, attention, residual) -> keras.Model:
    """{"film" (N, s, s, 1) in [0, 1], "condition" (N, T)} -> {"film": y, "mask": a, "residual": r}."""
    film = keras.Input((side, side, 1), name="film")
    condition = keras.Input((num_targets,), name="condition")
    x = _block(join(film, condition, "join_film"), width, "film")
    seen = []
    for step in range(1, _HALVINGS + 1):
        seen.append(x)
        x = layers.Conv2D(width * 2**step, 4, 2, "same", use_bias=False, name=f"down_{side // 2**step}_conv")(
            x
        )
        x = _activated(x, f"down_{side // 2**step}")
    x = _block(join(x, condition, "join_coarse"), width * 2**_HALVINGS, "coarse")
    for number in (1, 2):
        inside = _block(x, x.shape[-1], f"residual_{number}")
        inside = _conv(inside, x.shape[-1], f"residual_{number}_conv2")
        x = layers.Add(name=f"residual_{number}_add")([x, inside])
    if self_attention:
        x = SelfAttention("learned", name="attention")(x)
    for step in range(_HALVINGS - 1, -1, -1):
        name = f"up_{side // 2**step}"
        x = layers.UpSampling2D(2, interpolation="nearest", name=f"{name}_nearest")(x)
        x = layers.Concatenate(name=f"{name}_skip")([x, seen[step]])
        x = _block(x, width * 2**step, name)
    change = _head(x, "tanh", "change")
    if residual:
        r = layers.Rescaling(amplitude, dtype="float32", name="residual")(change)
        a = _head(x, "sigmoid", "mask", bias=_FIRST_MASK) if attention else ones_like(r, "mask")
        y = ChangedFilm(dtype="float32", name="changed")([film, a, r])
    else:
        y = layers.Rescaling(0.5, 0.5, dtype="float32", name="changed")(change)
        r = layers.Subtract(dtype="float32", name="residual")([y, film])
        a = ones_like(r, "mask")
    return keras.Model(
        {"film": film, "condition": condition}, {"film": y, "mask": a, "residual": r}, name="generator"
    )


@keras.saving.register_keras_serializable("kxray")
class ChangedFilm(layers.Layer):
    """y = clip(x + a * r, 0, 1) of a film x, a mask a and a residual r; x itself where a is 0."""

    def call(self, inputs):
        film, mask, residual = inputs
        return ops.clip(film + mask * residual, 0.0, 1.0)

    def compute_output_shape(self, input_shape):
        return input_shape[0]


def ones_like(x, name):
    return layers.Rescaling(0.0, 1.0, dtype="float32", name=name)(x)


def _head(x, activation, name, bias=0.0):
    # Float32 under any dtype policy: half precision has no 16 bits of grey. Small weights: the first
    # counterfactuals are the films themselves.
    return layers.Conv2D(
        1,
        3,
        padding="same",
        activation=activation,
        kernel_initializer=keras.initializers.RandomNormal(stddev=1e-2),
        bias_initializer=keras.initializers.Constant(bias),
        dtype="float32",
        name=name,
    )(x)


def _block(x, channels, name):
    return _activated(_conv(x, channels, f"{name}_conv"), name)


def _conv(x, channels, name):
    return layers.Conv2D(channels, 3, padding="same", use_bias=False, name=name)(x)


def _activated(x, name):
    # Of a film alone: what becomes of it depends on no other film of its batch.
    groups = max(count for count in range(1, _GROUPS + 1) if x.shape[-1] % count == 0)
    x = layers.GroupNormalization(groups, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
