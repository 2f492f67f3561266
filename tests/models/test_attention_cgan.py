"""The two GANs as they are built: shapes, counts, norms, films that a seed gives, files."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import kxray
from kxray import models

SMALL = dict(num_classes=3, latent=6, width=4, attention_pool=8)


@pytest.fixture(scope="module")
def gan():
    return models.build("attention_cgan", **SMALL, scales=3, ema=True)


def test_films_of_three_scales(gan):
    assert gan.sides == (64, 128, 256)
    films = gan.sample([0, 1, 2, 2, 1], batch_size=2)
    for side in gan.sides:
        assert films[side].shape == (5, side, side, 1)
        assert films[side].dtype == np.float32
        assert films[side].min() >= 0
        assert films[side].max() <= 1
    heads = gan.discriminators[128](
        {"film": films[128] * 2 - 1, "condition": np.eye(3, dtype="float32")[[0, 1, 2, 2, 1]]}
    )
    assert {name: tuple(head.shape) for name, head in heads.items()} == {
        "unconditional": (5,),
        "conditional": (5,),
    }


def test_a_film_depends_on_its_class_seed_and_number_alone(gan):
    five, two = gan.sample([1] * 5, seed=4)[64], gan.sample([1] * 2, seed=4)[64]
    np.testing.assert_allclose(five[:2], two, atol=1e-6)
    assert np.abs(five[0] - five[1]).max() > 1e-4
    assert np.abs(gan.sample([1], seed=5)[64] - five[:1]).max() > 1e-4
    assert np.abs(gan.sample([2], seed=4)[64] - five[:1]).max() > 1e-4
    z = models.latents(4, 2, 6)
    np.testing.assert_allclose(gan.sample([1, 1], z=z)[64], two, atol=1e-6)
    # Fully truncated, all films of a class are one.
    middle = gan.sample([1, 1], truncation=0.0)[64]
    np.testing.assert_allclose(middle[0], middle[1], atol=1e-6)


def test_latents_are_standard_normal():
    z = models.latents(0, 500, 8)
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.05


def conv(size, before, after, bias=False):
    return size * size * before * after + after * bias


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_parameter_counts_by_hand(scales):
    classes, latent, width = 3, 6, 4
    gan = models.build("attention_cgan", **SMALL, scales=scales)
    # Channels from 4 x 4 to 64 x 64: at most 8 times the width.
    channels = [32, 32, 16, 8, 4]
    count = (latent + classes) * 16 * 32 + 2 * 32
    for before, after in zip(channels[:-1], channels[1:], strict=True):
        count += conv(3, before, after) + 2 * after
    attention = 2 * width * 1 + width * width
    film = conv(3, 4, 1, bias=True)
    joining = conv(3, 4 + classes, 4) + 8
    residual = 2 * (conv(3, 4, 4) + 8)
    branch = joining + 2 * residual + conv(3, 4, 4) + 8 + film
    assert trainable(gan.generator) == count + attention + film + (scales - 1) * branch
    # 4x4 convolutions of stride 2 with bias, then the two heads.
    down = conv(4, 1, 4, True) + conv(4, 4, 8, True) + conv(4, 8, 16, True) + conv(4, 16, 32, True)
    heads = 2 * conv(4, 32, 1, True) + conv(3, 32 + classes, 32, True)
    assert trainable(gan.discriminators[64]) == down + heads


def trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def wrapped(gan):
    return [
        layer
        for model in (gan.generator, *gan.discriminators.values())
        for layer in model.layers
        if isinstance(layer, layers.SpectralNormalization)
    ]


def test_every_layer_of_the_discriminators_has_spectral_norm_one():
    gan = models.build("attention_cgan", **SMALL, scales=2, spectral_generator=True)
    for model in gan.discriminators.values():
        plain = [layer.name for layer in model.layers if isinstance(layer, (layers.Conv2D, layers.Dense))]
        assert plain == []
    assert any(layer in gan.generator.layers for layer in wrapped(gan))
    for _ in range(150):
        gan._project(wrapped(gan))
    for layer in wrapped(gan):
        kernel = layer.kernel.numpy()
        largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        assert largest == pytest.approx(1, abs=0.02), layer.name


def test_cdcgan_has_one_scale_and_one_head():
    for side in (64, 128):
        gan = models.build("cdcgan", num_classes=3, side=side, latent=6, width=4)
        assert gan.sample([0, 2])[side].shape == (2, side, side, 1)
        heads = gan.discriminators[side].output
        assert list(heads) == ["conditional"]
        assert np.isnan(gan.tau)


@pytest.mark.parametrize("name", ["attention_cgan", "cdcgan"])
def test_a_saved_gan_makes_the_same_films_in_a_process_of_its_own(tmp_path, name):
    scale = {"scales": 1, "attention_pool": 8} if name == "attention_cgan" else {"side": 64}
    gan = models.build(name, num_classes=3, latent=6, width=4, ema=True, **scale)
    gan.set_tau(0.3)
    gan.save(tmp_path / "model.keras")
    np.save(tmp_path / "film.npy", gan.sample([2], seed=3)[64])
    program = (
        "import sys, keras, numpy as np, kxray\n"
        "gan = keras.saving.load_model(sys.argv[1] + '/model.keras')\n"
        "film = gan.sample([2], seed=3)[64]\n"
        "print(np.abs(film - np.load(sys.argv[1] + '/film.npy')).max(), gan.tau)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    apart, tau = map(float, done.stdout.split()[-2:])
    assert apart < 1e-6
    assert tau == pytest.approx(0.3) if name == "attention_cgan" else np.isnan(tau)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("attention_cgan", {"scales": 4}, "scales must be 1, 2 or 3 .*, got 4"),
        ("attention_cgan", {"width": 2}, "width must be 4 or more, got 2"),
        ("cdcgan", {"side": 100}, "side must be 64, 128, 256 pixels, got 100"),
        ("cdcgan", {"num_classes": 0}, "num_classes must be 1 or more, got 0"),
    ],
)
def test_options_out_of_range_are_told(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, **options)


def test_classes_and_latents_that_do_not_fit_are_told(gan):
    for classes, got in (([0, 3], r"\[0, 3\]"), ([0.9], r"\[0.9\]")):
        with pytest.raises(ValueError, match=rf"classes must be whole numbers in \[0, 3\), got {got}"):
            gan.sample(classes)
    with pytest.raises(ValueError, match=r"z must be \(2, 6\), got \(2, 5\)"):
        gan.sample([0, 1], z=np.zeros((2, 5)))


def test_half_precision_films_are_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        gan = models.build("attention_cgan", **SMALL, scales=1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert gan.sample([0])[64].dtype == np.float32
    assert gan.generator.get_layer("up_64_conv").compute_dtype == "bfloat16"


def test_kxray_knows_them():
    assert {"attention_cgan", "cdcgan"} <= set(kxray.models.names())
