"""The multi-scale network: its stages and heads, one-channel ImageNet kernels, starting weights, errors."""

import keras
import numpy as np
import pytest

import kxray
from kxray.layers import LayerRelevance
from kxray.models import _backbones, _weights

NAME = "multiscale_densenet"


@pytest.fixture(scope="module")
def densenet():
    keras.utils.set_random_seed(0)
    return kxray.models.build(NAME, num_labels=4, image_size=(64, 64))


@pytest.fixture(scope="module")
def film():
    return np.random.default_rng(0).random((2, 64, 64, 1)).astype("float32")


def test_densenet_121_with_a_vote_a_block(densenet, film):
    names = [layer.name for layer in densenet.layers]
    assert names[0] == "film" and names[-2:] == ["layer_relevance", "probabilities"]
    assert [name for name in names if name.startswith("logits_")] == [
        "logits_block2",
        "logits_block3",
        "logits_block4",
    ]
    assert not any(isinstance(layer, keras.Model) for layer in densenet.layers)
    # keras.applications: 7,037,504 with three input channels; the first kernel is 7 x 7 x 64 a channel.
    heads = sum(4 * channels + 4 for channels in (512, 1024, 1024)) + 3 * 4
    assert densenet.count_params() == 7_037_504 - 2 * 7 * 7 * 64 + heads
    probabilities = np.asarray(densenet(film))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert {layer.momentum for layer in densenet.layers if hasattr(layer, "momentum")} == {0.9}


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [
        ("densenet169", {"block1": 256, "block2": 512, "block3": 1280, "block4": 1664}),
        ("densenet201", {"block1": 256, "block2": 512, "block3": 1792, "block4": 1920}),
        ("resnet50", {"conv2": 256, "conv3": 512, "conv4": 1024, "conv5": 2048}),
        ("resnet152", {"conv2": 256, "conv3": 512, "conv4": 1024, "conv5": 2048}),
        ("xception", {"block2": 128, "block3": 256, "block12": 728, "block14": 2048}),
    ],
)
def test_every_backbone_has_its_published_stages(backbone, stages):
    model = kxray.models.build(NAME, backbone=backbone, image_size=(96, 96), taps=4)
    tapped = {name: model.get_layer(f"gap_{name}").output.shape[-1] for name in stages}
    assert tapped == stages
    sides = [model.get_layer(f"gap_{name}").input.shape[1] for name in stages]
    assert sides == sorted(sides, reverse=True) and len(set(sides)) == 4


def test_a_subset_of_stages_is_tapped_shallow_to_deep():
    model = kxray.models.build(NAME, taps=("block4", "block1"), image_size=(32, 32))
    layer = model.get_layer("layer_relevance")
    assert isinstance(layer, LayerRelevance) and layer.scores.shape == (2, 2)
    pooled = [layer.name for layer in model.layers if layer.name.startswith("gap")]
    assert pooled == ["gap_block1", "gap_block4"]


def test_a_sigmoid_head_answers_every_finding_by_itself(film):
    model = kxray.models.build(NAME, num_labels=3, image_size=(64, 64), head="sigmoid", taps=1)
    logits = keras.Model(model.input, model.get_layer("logits_block4").output)(film)
    np.testing.assert_allclose(model(film), 1 / (1 + np.exp(-np.asarray(logits))), atol=1e-6)


def test_kernels_summed_over_colours_equal_the_film_repeated_in_all_three():
    side = 64
    keras.utils.set_random_seed(1)
    colour = keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(side, side, 3))
    for layer in colour.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(np.random.default_rng(2).normal(size=shape) * 0.1)
    path_free = kxray.models.build(NAME, image_size=(side, side), taps=1)
    for name, layer in _backbones.weighted_layers(path_free).items():
        source = colour.get_layer(name).get_weights()
        layer.set_weights(
            [_weights.over_channels(v, w.shape) for v, w in zip(source, layer.weights, strict=True)]
        )
    film = np.random.default_rng(3).random((2, side, side, 1)).astype("float32")
    ours = keras.Model(path_free.input, path_free.get_layer("relu").output)(film)
    scaled = (film - 0.449) / 0.226
    theirs = colour(np.repeat(scaled, 3, axis=-1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_full_bit_depth_reaches_the_network(densenet, film):
    # Far from where rounding to 8 bits would change: one grey level of 16 bits would be lost there.
    eight_bits = np.round(film * 255) / np.float32(255)
    one_level_more = eight_bits + np.float32(1 / 65535)
    assert (np.round(one_level_more * 255) == np.round(eight_bits * 255)).all()
    assert np.abs(np.asarray(densenet(eight_bits)) - np.asarray(densenet(one_level_more))).max() > 0


@pytest.mark.real_data
def test_imagenet_xception_starts_a_one_channel_network(real_data):
    path = real_data.parent / "weights" / "xception_imagenet_notop.weights.h5"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    model = kxray.models.build(NAME, backbone="xception", image_size=(100, 100), taps=1)
    heads = [weight.copy() for weight in model.get_layer("logits_block14").get_weights()]
    assert kxray.models.load_backbone_weights(model, "xception", path) == 80
    np.testing.assert_array_equal(model.get_layer("logits_block14").get_weights()[0], heads[0])
    colour = keras.applications.Xception(include_top=False, weights=None, input_shape=(100, 100, 3))
    colour.load_weights(path)
    film = np.random.default_rng(4).random((1, 100, 100, 1)).astype("float32")
    ours = keras.Model(model.input, model.get_layer("block14_sepconv2_act").output)(film)
    np.testing.assert_allclose(ours, colour(np.repeat(2 * film - 1, 3, axis=-1)), atol=2e-5)


def test_a_run_starts_another_whatever_its_labels(densenet, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    densenet.save(run / "model.keras")
    spec = kxray.ModelSpec(NAME, ("a", "b", "c", "d"), "multiclass", (64, 64))
    (run / "spec.json").write_text(spec.to_json())
    started = kxray.models.build(NAME, num_labels=2, image_size=(32, 32), taps=2)
    assert kxray.models.load_backbone_weights(started, "densenet121", run) > 200
    for name in ("conv1_conv", "conv5_block16_2_conv", "bn"):
        for ours, theirs in zip(
            started.get_layer(name).get_weights(), densenet.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_frozen_means_only_heads_train():
    model = kxray.models.build(NAME, image_size=(32, 32), taps=2)
    kxray.models.freeze_backbone(model)
    names = {variable.path.split("/")[0] for variable in model.trainable_variables}
    assert names == {"logits_block3", "logits_block4", "layer_relevance"}
    before = [variable.numpy() for variable in model.non_trainable_variables]
    model.compile("sgd", "categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(np.random.default_rng(0).random((4, 32, 32, 1)), np.eye(2)[[0, 1, 0, 1]])
    for was, variable in zip(before, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(was, variable)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "densenet12"}, "unknown backbone 'densenet12'; the known ones are: densenet121"),
        ({"taps": 5}, r"densenet121 has 4 stages \(block1, block2, block3, block4\), got 5 taps"),
        ({"taps": 0}, "got 0 taps"),
        ({"taps": ("block2", "conv3")}, "which are block1, block2, block3, block4; 'conv3' is none"),
        ({"taps": ("block2", "block2")}, "different stages"),
        ({"taps": ()}, r"got \[\]"),
        ({"image_size": (20, 20)}, r"densenet121 needs films of at least 32 x 32 pixels, got \(20, 20\)"),
        ({"image_size": (70, 70), "backbone": "xception"}, "at least 71 x 71"),
        ({"head": "linear"}, "head must be one of softmax, sigmoid, got 'linear'"),
        ({"num_labels": 1}, "num_labels must be at least 2, got 1"),
        ({"constraint": "clip"}, "constraint must be one of softmax, penalty"),
        ({"batch_norm_momentum": 1.0}, r"must be in \[0, 1\), got 1.0"),
        ({"weights": "imagenet"}, "has no option 'weights'"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        kxray.models.build(NAME, **options)


def test_wrong_starting_weights_are_named(densenet, tmp_path):
    shallow = kxray.models.build(NAME, image_size=(64, 64), taps=("block1",))
    shallow.save(tmp_path / "model.keras")
    spec = kxray.ModelSpec(NAME, ("a", "b"), "multiclass", (64, 64))
    (tmp_path / "spec.json").write_text(spec.to_json())
    with pytest.raises(ValueError, match="layers of densenet121 are not in it"):
        kxray.models.load_backbone_weights(densenet, "densenet121", tmp_path / "model.keras")
    with pytest.raises(FileNotFoundError, match="no such starting weights"):
        kxray.models.load_backbone_weights(densenet, "densenet121", tmp_path / "none.h5")
    (tmp_path / "text.weights.h5").write_text("nothing")
    with pytest.raises(ValueError, match="does not hold this network"):
        kxray.models.load_backbone_weights(densenet, "densenet121", tmp_path / "text.weights.h5")
