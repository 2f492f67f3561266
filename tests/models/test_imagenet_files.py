"""ImageNet files: names and checksums as keras.applications states them, KXRAY_WEIGHTS, and no network."""

import hashlib
import inspect
import sys

import h5py
import keras
import numpy as np
import pytest

import kxray
from kxray.models import _backbones, _imagenet_files

# Ours, which nobody trained on ImageNet.
UNTRAINED = ["small_densenet"]
APPLICATIONS = [
    backbone.application for name, backbone in _backbones.BACKBONES.items() if name not in UNTRAINED
]
OF_KERAS = [application for application in APPLICATIONS if application != "AlexNet"]


class Asked(Exception):
    pass


def asked_of_keras(application, monkeypatch):
    """(file name, address, checksum) that keras.applications itself asks for."""

    def intercept(name, address, **options):
        raise Asked(name, address, options.get("file_hash"))

    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", intercept)
    with pytest.raises(Asked) as asked:
        getattr(keras.applications, application)(
            include_top=False, weights="imagenet", input_shape=(224, 224, 3)
        )
    return asked.value.args


def test_every_backbone_has_its_file_and_every_image_model_of_keras_its_name():
    in_keras = {name for name, made in vars(keras.applications).items() if inspect.isfunction(made)}
    assert set(OF_KERAS) <= in_keras
    assert in_keras - set(OF_KERAS) <= {"KerasHub"}
    assert kxray.models.backbone_names() == list(_backbones.BACKBONES)
    for name, backbone in _backbones.BACKBONES.items():
        assert name.replace("_", "") == backbone.application.lower()
        if name in UNTRAINED:
            continue
        file, address, _ = _imagenet_files.file_of(backbone.application)
        assert address.startswith("https://") and file.endswith((".h5", ".pth"))


@pytest.mark.parametrize("application", OF_KERAS)
def test_preprocessing_and_checksum_are_in_the_sources_of_keras(application):
    module = sys.modules[getattr(keras.applications, application).__module__]
    # ResNet V2 leaves its checksums to ResNet.
    source = inspect.getsource(module) + inspect.getsource(keras.src.applications.resnet)
    checksum = _imagenet_files.file_of(application)[2]
    assert checksum is None or f'"{checksum}"' in source
    # What it does to pixels in [0, 255], against what we do to the film.
    pixels = np.float32([[[[0, 0, 0], [255, 255, 255], [51, 51, 51]]]])
    film = keras.Input((1, 3, 1))
    ours = keras.Model(film, _backbones.colours(application.lower(), film))
    np.testing.assert_allclose(
        ours(pixels[..., :1] / 255), module.preprocess_input(pixels.copy()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "application", ["VGG16", "Xception", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny"]
)
def test_keras_asks_for_the_same_file(application, monkeypatch):
    assert asked_of_keras(application, monkeypatch) == _imagenet_files.file_of(application)


@pytest.mark.slow
@pytest.mark.parametrize("application", OF_KERAS)
def test_keras_asks_for_the_same_file_always(application, monkeypatch):
    assert asked_of_keras(application, monkeypatch) == _imagenet_files.file_of(application)


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise Exception("URL fetch failure: Name or service not known")

    monkeypatch.setattr(keras.utils, "get_file", fail)


def test_without_a_network_one_line_says_what_to_fetch(no_network, monkeypatch):
    monkeypatch.delenv("KXRAY_WEIGHTS", raising=False)
    model = kxray.models.build("transfer", backbone="vgg16", image_size=(32, 32))
    with pytest.raises(ValueError) as refused:
        kxray.models.load_backbone_weights(model, "vgg16", "imagenet")
    name = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert str(refused.value) == (
        f"imagenet: {name} is not here and could not be downloaded; on a connected machine fetch "
        f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{name}, put it into a folder "
        "and set KXRAY_WEIGHTS=FOLDER (URL fetch failure: Name or service not known)"
    )


def test_files_of_the_folder_are_verified(no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("KXRAY_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=f"vgg16_.* is not here .* KXRAY_WEIGHTS={tmp_path}"):
        _imagenet_files.fetch("VGG16")
    file = tmp_path / _imagenet_files.file_of("VGG16")[0]
    file.write_bytes(b"cut short")
    with pytest.raises(ValueError, match="its MD5 is .*, expected 6d6bbae143d832006294945121d1f1fc: damaged"):
        _imagenet_files.fetch("VGG16")
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"another network")
    with pytest.raises(ValueError, match="its SHA256 is [0-9a-f]{8}, expected 7be5be79: damaged"):
        _imagenet_files.fetch("AlexNet")
    digest = hashlib.md5(b"cut short").hexdigest()
    monkeypatch.setitem(_imagenet_files._FILES, "VGG16", (_imagenet_files._FILES["VGG16"][0], digest))
    assert _imagenet_files.fetch("VGG16") == file
    monkeypatch.setenv("KXRAY_WEIGHTS", str(file))
    with pytest.raises(ValueError, match="KXRAY_WEIGHTS names .*, which is no folder"):
        _imagenet_files.fetch("VGG16")


def test_a_download_that_is_another_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("KXRAY_WEIGHTS", raising=False)
    file = tmp_path / "alexnet.pth"
    file.write_bytes(b"another network")
    monkeypatch.setattr(keras.utils, "get_file", lambda *_, **__: str(file))
    with pytest.raises(ValueError, match="alexnet.pth: its SHA256 is"):
        _imagenet_files.fetch("AlexNet")


def write_as_keras_2(network, path):
    """The format of the published files: layers in order, each with its weights."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in network.layers]
        for layer in network.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{index}".encode() for index in range(len(layer.weights))]
            group.attrs["weight_names"] = names
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name.decode()] = value


def test_efficientnet_v1_is_the_function_that_keras_makes_of_its_file(monkeypatch, tmp_path):
    # Its file holds deviations in the place of variances, and Keras rescales behind it.
    keras.utils.set_random_seed(0)
    plain = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    (normalization,) = (layer for layer in plain.layers if isinstance(layer, keras.layers.Normalization))
    normalization.set_weights(
        [np.float32(_backbones._MEANS), np.float32(_backbones._DEVIATIONS), np.int64(1)]
    )
    name, address, _ = _imagenet_files.file_of("EfficientNetB0")
    write_as_keras_2(plain, tmp_path / name)
    digest = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setitem(_imagenet_files._FILES, "EfficientNetB0", (address, digest))
    monkeypatch.setenv("KXRAY_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", lambda *_, **__: str(tmp_path / name))
    theirs = keras.applications.EfficientNetB0(
        include_top=False, weights="imagenet", input_shape=(32, 32, 3), pooling="avg"
    )
    model = kxray.models.build("transfer", backbone="efficientnetb0", image_size=(32, 32))
    film = np.random.default_rng(0).random((2, 32, 32, 1), "float32")
    before = kxray.models.weights_digest(model)
    kxray.models.load_backbone_weights(model, "efficientnetb0", "imagenet")
    assert kxray.models.weights_digest(model) != before
    ours = keras.Model(model.input, model.get_layer("features").output)
    expected = theirs(255 * np.repeat(film, 3, axis=-1))
    np.testing.assert_allclose(ours(film), expected, rtol=1e-3, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(film), model(film), atol=1e-6)
    # From a model of ours they are taken as they are: the factor is in them already.
    (tmp_path / "spec.json").write_text(
        kxray.ModelSpec("transfer", ("a", "b"), "multiclass", (32, 32)).to_json()
    )
    other = kxray.models.build("transfer", backbone="efficientnetb0", image_size=(32, 32))
    kxray.models.load_backbone_weights(other, "efficientnetb0", tmp_path / "model.keras")
    assert kxray.models.weights_digest(other) == kxray.models.weights_digest(model)
