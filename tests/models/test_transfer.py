"""Transfer: any backbone, its preprocessing inside, frozen means frozen, stages read from the graph."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import kxray
from kxray.models import _backbones

SMALL = {
    "mobilenetv2": (32, 1280),
    "efficientnetv2b0": (32, 1280),
    "efficientnetb0": (32, 1280),
    "convnexttiny": (32, 768),
    "xception": (71, 2048),
}


def build(backbone="mobilenetv2", **options):
    side = SMALL.get(backbone, (32,))[0]
    return kxray.models.build("transfer", backbone=backbone, **{"image_size": (side, side), **options})


def films(model, count=2):
    return np.random.default_rng(0).random((count, *model.input_shape[1:]), "float32")


def part(model, name):
    return keras.Model(model.input, model.get_layer(name).output)


@pytest.mark.parametrize("backbone", ["mobilenetv2", "efficientnetv2b0", "convnexttiny", "xception"])
def test_flat_named_frozen_and_saved(backbone, tmp_path):
    model = build(backbone)
    assert model.get_layer("features").output.shape == (None, SMALL[backbone][1])
    assert [layer.name for layer in model.layers][-3:] == ["features", "logits", "probabilities"]
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert [variable.path for variable in model.trainable_variables] == ["logits/kernel", "logits/bias"]
    answers = model(films(model))
    np.testing.assert_allclose(np.sum(answers, axis=1), 1, atol=1e-5)
    # Neither batch normalisation nor dropout nor stochastic depth knows that it is being trained.
    np.testing.assert_array_equal(model(films(model), training=True), answers)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(films(model)), answers, atol=1e-6)
    assert kxray.models.weights_digest(again) == kxray.models.weights_digest(model)
    assert kxray.models.backbone_stages(again) == kxray.models.backbone_stages(model)
    named = [name for stage in kxray.models.backbone_stages(model) for name in stage]
    held = [layer.name for layer in model.layers if layer.weights and layer.name != "logits"]
    assert len(set(named)) == len(named) and set(held) - set(named) <= {"normalization_1"}


def test_a_fresh_process_needs_only_kxray(tmp_path):
    model = build("convnexttiny")
    model.save(tmp_path / "model.keras")
    code = (
        "import sys, kxray, keras; model = keras.saving.load_model(sys.argv[1]); "
        "print(kxray.models.weights_digest(model))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.keras")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split()[-1] == kxray.models.weights_digest(model)


def test_layers_are_those_of_keras_applications():
    keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(75, 75, 3))
    ours = kxray.models.build("transfer", backbone="inceptionv3", image_size=(75, 75))
    names = [layer.name for layer in ours.layers]
    assert {"mixed10", "conv2d_1", "conv2d_94", "batch_normalization_94"} <= set(names)
    plain = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3))
    weighted = [layer.name for layer in plain.layers if layer.weights]
    assert list(_backbones.weighted_layers(build())) == weighted


def test_the_film_in_three_colours_through_keras_own_network():
    keras.utils.set_random_seed(0)
    model = build("resnet50")
    plain = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    plain.set_weights(
        [w for layer in _backbones.weighted_layers(model).values() for w in layer.get_weights()]
    )
    colours = np.repeat(255 * films(model), 3, axis=-1)
    expected = plain(keras.applications.resnet.preprocess_input(colours))
    np.testing.assert_allclose(part(model, "features")(films(model)), expected, rtol=1e-3, atol=1e-4)


def test_sixteen_bits_reach_the_backbone_under_half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("Conv1").compute_dtype == "bfloat16"
    film = np.full((1, 32, 32, 1), 0.75, "float32")
    prepared = part(model, "pixel_range")
    level = np.asarray(prepared(film + np.float32(1 / 65535)) - prepared(film))
    np.testing.assert_allclose(level, 2 / 65535, rtol=1e-2)
    assert part(model, "features")(film).dtype == "float32" == model(film).dtype


def labels(count):
    return np.eye(2, dtype="float32")[np.arange(count) % 3 % 2]


def settled(model):
    """Batch normalisation with the statistics of its input: many random layers without overflow."""
    normalising = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    flags = [layer.trainable for layer in normalising]
    for layer in normalising:
        layer.trainable, layer.momentum = True, 0.0
    model(films(model, 4), training=True)
    for layer, flag in zip(normalising, flags, strict=True):
        layer.trainable = flag
    return model


def trained(model, steps=3, rate=0.1):
    model.compile(keras.optimizers.SGD(rate), "categorical_crossentropy")
    for _ in range(steps):
        model.train_on_batch(films(model, 4), labels(4))
    return model


def operations_of_a_training_step(model):
    """Types of the operations that a training step executes: those that its outputs and updates depend on."""
    step = tf.function(lambda images, wanted: model.train_step((images, wanted)))
    traced = step.get_concrete_function(tf.constant(films(model, 4)), tf.constant(labels(4)))
    # Keras's tape also writes down gradients of frozen layers; nothing asks for them, so none is computed.
    waiting = [*(tensor.op for tensor in traced.graph.outputs), *traced.graph.control_outputs]
    executed = set()
    while waiting:
        operation = waiting.pop()
        if operation not in executed:
            executed.add(operation)
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return {operation.type for operation in executed}


def test_frozen_means_frozen():
    model = build()
    backbone = [
        variable
        for layer in model.layers
        if layer.name != "logits"
        for variable in layer.variables
        if "seed" not in variable.path
    ]
    assert any("moving_variance" in variable.path for variable in backbone)
    before = [variable.numpy() for variable in backbone]
    bias = model.get_layer("logits").bias.numpy()
    trained(model)
    for was, variable in zip(before, backbone, strict=True):
        np.testing.assert_array_equal(was, variable.numpy(), err_msg=variable.path)
    assert (model.get_layer("logits").bias.numpy() != bias).all()
    operations = operations_of_a_training_step(model)
    assert "Conv2D" in operations and "DepthwiseConv2dNative" in operations
    assert not [name for name in operations if "Backprop" in name or name.startswith("Relu6Grad")]


def test_fine_tuning_trains_all_but_batch_normalisation():
    model = trained(build(mode="fine_tune"))
    operations = operations_of_a_training_step(model)
    assert {"Conv2DBackpropFilter", "DepthwiseConv2dNativeBackpropFilter"} <= operations
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert not layer.trainable_variables
            np.testing.assert_array_equal(layer.moving_mean.numpy(), 0)
        elif layer.weights:
            assert len(layer.trainable_variables) == len(layer.weights)


def test_batch_normalisation_may_be_trained():
    model = trained(build(mode="fine_tune", batch_norm="trained"))
    normalization = model.get_layer("bn_Conv1")
    assert len(normalization.trainable_variables) == 2 and normalization.momentum == 0.9
    assert np.abs(normalization.moving_mean.numpy()).max() > 0


def test_the_last_stages_alone():
    model = build(mode="fine_tune", trained_stages=2, batch_norm="trained")
    stages = kxray.models.backbone_stages(model)
    assert [stage[0] for stage in stages] == [
        "Conv1",
        "block_1_depthwise",
        "block_3_depthwise",
        "block_6_depthwise",
        "block_13_depthwise",
    ]
    trainable = {layer.name for layer in model.layers if layer.trainable_variables}
    assert trainable == {*stages[3], *stages[4], "logits"}
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    trained(model)
    for name in [name for stage in stages[:3] for name in stage]:
        for was, value in zip(before[name], model.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(was, value)
    assert (model.get_layer("Conv_1").get_weights()[0] != before["Conv_1"][0]).any()


def test_dropout_rests_before_the_first_trained_stage():
    model = build("efficientnetb0", mode="fine_tune", trained_stages=1)
    rates = {layer.name: layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)}
    assert rates["block2b_drop"] == 0 and rates["block5c_drop"] == 0 and rates["block6d_drop"] > 0
    everything = build("efficientnetb0", mode="fine_tune")
    assert everything.get_layer("block2b_drop").rate > 0


@pytest.mark.parametrize(
    ("backbone", "side", "sides", "first"),
    [
        ("densenet121", 64, [32, 16, 8, 4, 2], "conv5_block1_0_bn"),
        ("vgg16", 64, [64, 32, 16, 8, 4], "block5_conv1"),
        # Squeeze-and-excitation convolutions work on one pixel, but belong to their block.
        ("efficientnetv2b0", 64, [32, 16, 8, 4, 2], "block6a_dwconv2"),
        # Strides before a padding; poolings of pooled maps.
        ("resnet50v2", 32, [16, 8, 4, 2, 1], "conv4_block6_2_conv"),
        ("xception", 71, [35, 17, 9, 5, 3], "shortcut_conv2d_4"),
    ],
)
def test_stages_by_resolution(backbone, side, sides, first):
    model = kxray.models.build("transfer", backbone=backbone, image_size=(side, side))
    stages = kxray.models.backbone_stages(model)
    assert [model.get_layer(stage[0]).output.shape[1] for stage in stages] == sides
    assert stages[-1][0] == first
    assert "logits" not in [name for stage in stages for name in stage]


def test_dense_layers_are_the_last_stage_of_alexnet():
    model = kxray.models.build(
        "transfer", backbone="alexnet", image_size=(100, 100), mode="fine_tune", trained_stages=1
    )
    stages = kxray.models.backbone_stages(model)
    assert stages == [["conv1"], ["conv2"], ["conv3", "conv4", "conv5"], ["fc6", "fc7"]]
    assert {variable.path.split("/")[0] for variable in model.trainable_variables} == {"fc6", "fc7", "logits"}
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0, 0.5]  # the first one lies before the first trained layer


def test_the_stages_of_a_multiscale_network():
    model = kxray.models.build("multiscale_densenet", image_size=(64, 64), taps=2)
    stages = kxray.models.backbone_stages(model)
    assert len(stages) == 5 and stages[0] == ["conv1_conv", "conv1_bn"] and stages[-1][-1] == "bn"


def test_the_digest_is_of_the_backbone_alone():
    keras.utils.set_random_seed(0)
    model, other = build(), build(mode="fine_tune", num_labels=4)
    digest = kxray.models.weights_digest(model)
    assert len(digest) == 64 and kxray.models.weights_digest(other) != digest
    for name, layer in _backbones.weighted_layers(model).items():
        other.get_layer(name).set_weights(layer.get_weights())
    assert kxray.models.weights_digest(other) == digest
    kernel = model.get_layer("Conv1").kernel
    kernel.assign(kernel * 1.0001)
    assert kxray.models.weights_digest(model) != digest


def test_features_of_every_length():
    assert kxray.models.backbone_features("mobilenetv2") == 1280
    assert kxray.models.backbone_features("densenet121") == 1024
    assert kxray.models.backbone_features("alexnet") == 4096


def test_a_run_starts_another(tmp_path):
    run = build("mobilenetv2", num_labels=3)
    run.save(tmp_path / "model.keras")
    (tmp_path / "spec.json").write_text(
        kxray.ModelSpec("transfer", ("a", "b", "c"), "multiclass", (32, 32)).to_json()
    )
    started = build("mobilenetv2", image_size=(64, 48), mode="fine_tune")
    assert kxray.models.load_backbone_weights(started, "mobilenetv2", tmp_path) == 104
    assert kxray.models.weights_digest(started) == kxray.models.weights_digest(run)


def written(model, folder):
    folder.mkdir()
    model.save(folder / "model.keras")
    spec = kxray.ModelSpec("transfer", ("a", "b"), "multiclass", model.input_shape[1:3])
    (folder / "spec.json").write_text(spec.to_json())
    return folder


def test_another_network_with_the_same_layers_and_more_is_refused(tmp_path):
    # Every layer of VGG16 is one of VGG19's, of the same shape.
    run = written(build("vgg19"), tmp_path / "vgg19")
    model = build("vgg16")
    before = kxray.models.weights_digest(model)
    with pytest.raises(ValueError, match="holds another network than vgg16, which has no block3_conv4"):
        kxray.models.load_backbone_weights(model, "vgg16", run)
    assert kxray.models.weights_digest(model) == before


def test_a_layer_with_weights_too_many_is_refused(tmp_path):
    film = keras.Input((32, 32, 1))
    biased = keras.layers.Conv2D(4, 3, name="conv1")(film)
    x = keras.layers.GlobalAveragePooling2D()(biased)
    run = written(keras.Model(film, keras.layers.Dense(2, name="logits")(x)), tmp_path / "biased")
    plain = keras.layers.Conv2D(4, 3, use_bias=False, name="conv1")(film)
    with pytest.raises(ValueError, match="its layer conv1 has not the shapes of mobilenetv2's"):
        kxray.models.load_backbone_weights(keras.Model(film, plain), "mobilenetv2", run)


@pytest.mark.parametrize("backbone", ["xception", "densenet121", "resnet50"])
def test_a_shallow_network_starts_from_a_deep_one(backbone, tmp_path):
    run = written(build(backbone, image_size=(71, 71)), tmp_path / "run")
    for stage in list(_backbones.find(backbone).stages)[:-1]:
        model = kxray.models.build("multiscale_densenet", backbone=backbone, image_size=(71, 71), taps=stage)
        wanted = _backbones.weighted_layers(model)
        assert kxray.models.load_backbone_weights(model, backbone, run) == len(wanted)


@pytest.mark.real_data
def test_imagenet_xception_is_keras_own(real_data):
    path = real_data.parent / "weights" / "xception_imagenet_notop.weights.h5"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    model = build("xception")
    assert kxray.models.load_backbone_weights(model, "xception", path) == 80
    plain = keras.applications.Xception(
        include_top=False, weights=None, input_shape=(71, 71, 3), pooling="avg"
    )
    plain.load_weights(path)
    expected = plain(np.repeat(2 * films(model) - 1, 3, axis=-1))
    np.testing.assert_allclose(part(model, "features")(films(model)), expected, atol=2e-5)


def test_backbones_are_checked_before_anything_is_built():
    kxray.models.check_backbone("mobilenetv2", None, (32, 32))
    kxray.models.check_backbone("densenet121", 3, (32, 32))
    with pytest.raises(
        ValueError, match="'mobilenetv2' has no stages to tap; those that have are: densenet121"
    ):
        kxray.models.check_backbone("mobilenetv2", 3, (32, 32))
    with pytest.raises(ValueError, match="at least 71 x 71 pixels"):
        kxray.models.check_backbone("xception", None, (70, 90))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"backbone": "mobilenet2"},
            "unknown backbone 'mobilenet2'; .*densenet121.*; did you mean 'mobilenetv2'",
        ),
        ({"backbone": "DenseNet121"}, "did you mean 'densenet121'"),
        ({"backbone": None}, "unknown backbone None; the known ones are"),
        ({"image_size": (31, 64)}, r"mobilenetv2 needs films of at least 32 x 32 pixels, got \(31, 64\)"),
        ({"image_size": 64}, r"image_size must be \(height, width\) in pixels, got 64"),
        ({"mode": "frozen"}, "mode must be one of feature_extractor, fine_tune, got 'frozen'"),
        ({"batch_norm": "on"}, "batch_norm must be one of frozen, trained, got 'on'"),
        ({"trained_stages": 2}, "they need mode='fine_tune', got mode='feature_extractor'"),
        ({"batch_norm": "trained"}, "they need mode='fine_tune'"),
        (
            {"mode": "fine_tune", "trained_stages": 0},
            "trained_stages must be at least 1, or None for all, got 0",
        ),
        ({"mode": "fine_tune", "trained_stages": 6}, "the backbone has 5 stages, got trained_stages=6"),
        ({"head": "linear"}, "head must be one of softmax, sigmoid"),
        ({"num_labels": 1}, "num_labels must be at least 2 with a softmax head, got 1"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words) as refused:
        build(**options)
    assert "\n" not in str(refused.value)


PUBLISHED = {  # without the last dense layer; of AlexNet with its 1,000 labels
    "alexnet": 61_100_840 - 4_097_000,
    "resnet152": 58_370_944,
    "densenet201": 18_321_984,
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backbone", PUBLISHED)
def test_the_papers_backbones_at_full_size(backbone, tmp_path):
    for mode in ("feature_extractor", "fine_tune"):
        model = kxray.models.build("transfer", backbone=backbone, mode=mode)
        head = 2 * kxray.models.backbone_features(backbone) + 2
        assert model.count_params() == PUBLISHED[backbone] + head
        trainable = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
        statistics = sum(
            layer.count_params()
            for layer in model.layers
            if isinstance(layer, keras.layers.BatchNormalization)
        )
        assert trainable == (head if mode == "feature_extractor" else model.count_params() - statistics)
        trained(settled(model), steps=1, rate=1e-4)
        answers = model.predict_on_batch(films(model))
        assert np.isfinite(answers).all()
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
        np.testing.assert_allclose(again.predict_on_batch(films(model)), answers, atol=1e-6)
        (tmp_path / "model.keras").unlink()
        del model, again
        keras.utils.clear_session()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_alexnet_at_full_size_is_exported_and_served(tmp_path):
    from serving.export import export
    from serving.servable import Servable

    model = kxray.models.build("transfer", backbone="alexnet")
    trained(model, steps=1)
    run = written(model, tmp_path / "run")
    version = export(run, tmp_path / "models" / "alexnet", explain=["grad_cam"])
    served = Servable("alexnet", 1, version)
    pixels = np.random.default_rng(0).random((2, 300, 200, 1), "float32")
    given = {"pixels": tf.make_tensor_proto(pixels)}
    small = tf.constant(kxray.layers.film_input(kxray.load(run)[1])(pixels))
    np.testing.assert_allclose(served.run("predict_pixels", given)["probabilities"], model(small), atol=1e-5)
