"""AlexNet: its published size, torch's numbers, its state dict into Keras's order, maps of other sizes."""

import keras
import numpy as np
import pytest

import kxray
from kxray.models import _state_dict, alexnet

COUNTS = {  # Krizhevsky (2014) as in torchvision: kernel and bias of each layer.
    "conv1": 11 * 11 * 3 * 64 + 64,
    "conv2": 5 * 5 * 64 * 192 + 192,
    "conv3": 3 * 3 * 192 * 384 + 384,
    "conv4": 3 * 3 * 384 * 256 + 256,
    "conv5": 3 * 3 * 256 * 256 + 256,
    "fc6": 9216 * 4096 + 4096,
    "fc7": 4096 * 4096 + 4096,
    "logits": 4096 * 1000 + 1000,
}


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return kxray.models.build("alexnet")


def test_published_parameter_count(network):
    counts = {layer.name: layer.count_params() for layer in network.layers if layer.weights}
    assert counts == COUNTS and network.count_params() == 61_100_840
    sides = [
        network.get_layer(name).output.shape[1] for name in ("conv1", "pool1", "conv2", "pool2", "pool5")
    ]
    assert sides == [55, 27, 27, 13, 6]
    assert network.input_shape == (None, 224, 224, 1)


def test_a_film_is_the_three_colours_alike(network):
    colour = kxray.models.build("alexnet", channels=3)
    assert colour.count_params() == 61_100_840
    colour.set_weights(network.get_weights())
    film = np.random.default_rng(0).random((1, 224, 224, 1), "float32")
    np.testing.assert_allclose(network(film), colour(np.repeat(film, 3, axis=-1)), atol=1e-6)


def state_dict(generator=None):
    """A state dict of torchvision's shapes, drawn so that numbers keep their size through the layers."""
    arrays = {}
    for layer, place in alexnet.STATE_DICT.items():
        units = {"conv1": 64, "conv2": 192, "conv3": 384, "conv4": 256, "conv5": 256, "logits": 1000}
        outputs = units.get(layer, 4096)
        inputs = (COUNTS[layer] - outputs) // outputs
        window = {"conv1": 11, "conv2": 5, "conv3": 3, "conv4": 3, "conv5": 3}.get(layer)
        shape = (outputs, inputs // window**2, window, window) if window else (outputs, inputs)
        if generator is None:  # no memory is taken
            arrays[f"{place}.weight"] = np.broadcast_to(np.float32(0.01), shape)
        else:
            drawn = generator.standard_normal(shape, "float32")
            arrays[f"{place}.weight"] = drawn * np.float32(np.sqrt(2 / inputs))
        arrays[f"{place}.bias"] = np.linspace(-0.1, 0.1, outputs, dtype="float32")
    return arrays


def test_the_same_layers_in_pytorch_give_the_same_numbers(network, tmp_path):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    convolutions = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )
    dense = nn.Sequential(
        *(nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
        nn.Linear(4096, 1000),
    )
    theirs = nn.ModuleDict({"features": convolutions, "classifier": dense}).eval()
    drawn = state_dict(np.random.default_rng(1))
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in drawn.items()})
    file = tmp_path / "alexnet.pth"
    torch.save(theirs.state_dict(), file)
    last = alexnet.from_state_dict(_state_dict.read(file))["logits"]
    for side in (224, 100):
        model = network if side == 224 else kxray.models.build("alexnet", image_size=(side, side + 30))
        assert kxray.models.load_backbone_weights(model, "alexnet", file) == 7
        model.get_layer("logits").set_weights(last)
        film = np.random.default_rng(2).random((2, *model.input_shape[1:]), "float32")
        colours = np.repeat(film, 3, axis=-1) - np.float32([0.485, 0.456, 0.406])
        colours = (colours / np.float32([0.229, 0.224, 0.225])).transpose(0, 3, 1, 2)
        with torch.no_grad():
            maps = convolutions(torch.from_numpy(np.ascontiguousarray(colours)))
            pooled = nn.functional.adaptive_avg_pool2d(maps, (6, 6))
            expected = dense(pooled.flatten(1)).numpy()
        logits = keras.Model(model.input, model.get_layer("logits").output)(film)
        difference = np.abs(logits - expected).max() / np.abs(expected).max()
        print(f"{side} pixels: {difference:.1e} of the largest logit {np.abs(expected).max():.2f}")
        assert difference < 1e-5
    file.unlink()


def test_a_convolution_in_torchs_order_by_hand():
    generator = np.random.default_rng(0)
    arrays = state_dict()
    kernel = generator.normal(size=(192, 64, 5, 5)).astype("float32")
    arrays["features.3.weight"] = kernel
    ours = keras.layers.Conv2D(192, 5, padding="same")
    maps = generator.normal(size=(1, 7, 7, 64)).astype("float32")
    ours(maps)
    ours.set_weights(alexnet.from_state_dict(arrays)["conv2"])
    # Torch: out[k, y, x] = bias[k] + sum over c, i, j of weight[k, c, i, j] in[c, y + i - 2, x + j - 2].
    window = maps[0, 1:6, 2:7].transpose(2, 0, 1)
    by_hand = (kernel * window).sum(axis=(1, 2, 3)) + arrays["features.3.bias"]
    np.testing.assert_allclose(ours(maps)[0, 3, 4], by_hand, rtol=1e-3, atol=1e-3)


def test_the_first_dense_layer_reads_maps_in_torchs_order():
    arrays = state_dict()
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(5, 256 * 6 * 6)).astype("float32")
    arrays["classifier.1.weight"] = kernel
    maps = generator.normal(size=(6, 6, 256)).astype("float32")
    expected = kernel @ maps.transpose(2, 0, 1).ravel()  # torch flattens (K, h, w)
    fc6, _ = alexnet.from_state_dict(arrays)["fc6"]
    np.testing.assert_allclose(maps.ravel() @ fc6, expected, rtol=1e-3, atol=1e-3)  # Keras (h, w, K)


def test_weights_reach_the_network_and_its_head_stays(network, monkeypatch, tmp_path):
    file = tmp_path / "alexnet.npz"
    file.touch()
    arrays = state_dict()
    monkeypatch.setattr(_state_dict, "read", lambda path: arrays)
    head = network.get_layer("logits").get_weights()[0]
    assert kxray.models.load_backbone_weights(network, "alexnet", file) == 7
    assert (network.get_layer("fc7").get_weights()[0] == np.float32(0.01)).all()
    np.testing.assert_array_equal(network.get_layer("logits").get_weights()[0], head)
    # A state dict without its last layer does as well.
    del arrays["classifier.6.weight"], arrays["classifier.6.bias"]
    assert kxray.models.load_backbone_weights(network, "alexnet", file) == 7
    arrays["classifier.1.weight"] = np.zeros((4096, 256 * 49), "float32")
    with pytest.raises(ValueError, match=r"classifier.1.weight has the shape \(4096, 12544\), which"):
        kxray.models.load_backbone_weights(network, "alexnet", file)
    arrays["classifier.1.weight"] = np.zeros((8, 9216), "float32")
    with pytest.raises(ValueError, match="its layer fc6 has not the shapes of alexnet's"):
        kxray.models.load_backbone_weights(network, "alexnet", file)
    del arrays["features.0.bias"]
    with pytest.raises(ValueError, match="alexnet.npz: .*: no features.0.bias in it, which torchvision's"):
        kxray.models.load_backbone_weights(network, "alexnet", file)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="expected a state dict as .pth, .pt, .safetensors, .npz, got .h5"):
        (tmp_path / "alexnet.h5").touch()
        kxray.models.load_backbone_weights(network, "alexnet", tmp_path / "alexnet.h5")


@pytest.mark.parametrize(
    ("length", "bins"), [(7, [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)]), (1, [(0, 1)] * 6)]
)
def test_maps_of_other_sizes_are_averaged_in_torchs_bins(length, bins, tmp_path):
    maps = np.random.default_rng(0).random((2, length, 6, 3), "float32")
    given = keras.Input(maps.shape[1:])
    model = keras.Model(given, alexnet._average_to(6, given))
    expected = np.stack([maps[:, start:end].mean(axis=1) for start, end in bins], axis=1)
    np.testing.assert_allclose(model(maps), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "model.keras")(maps), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": (62, 70)}, r"alexnet needs films of at least 63 x 63 pixels, got \(62, 70\)"),
        ({"channels": 2}, r"channels must be 1 \(a film\) or 3 \(colours\), got 2"),
        ({"head": "linear"}, "head must be one of softmax, sigmoid, got 'linear'"),
        ({"num_labels": 1}, "num_labels must be at least 2 with a softmax head, got 1"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        kxray.models.build("alexnet", **options)
