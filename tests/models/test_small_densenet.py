"""The small DenseNet: its stages, the models that take it, and where its weights come from."""

import keras
import numpy as np
import pytest

import kxray
from kxray.models import _small_densenet

NAME = "small_densenet"


def build(model="multiscale_densenet", **options):
    return kxray.models.build(model, backbone=NAME, image_size=(64, 64), **options)


def written(model, folder):
    folder.mkdir()
    model.save(folder / "model.keras")
    spec = kxray.ModelSpec(model.name, ("a", "b"), "multiclass", (64, 64))
    (folder / "spec.json").write_text(spec.to_json())
    return folder


def test_a_dense_block_by_hand():
    x = keras.Input((8, 8, 5))
    block = keras.Model(x, _small_densenet.dense_block(x, 3, 12, "block"))
    assert block.output_shape == (None, 8, 8, 5 + 3 * 12)
    # Bottlenecks 5, 17 and 29 -> 48, 3 x 3 from 48 to 12; batch normalisation has 4 numbers a feature.
    bottlenecks = sum(inputs * 48 + 4 * inputs for inputs in (5, 17, 29))
    assert block.count_params() == bottlenecks + 3 * (4 * 48 + 9 * 48 * 12)
    films = np.random.default_rng(0).random((1, 8, 8, 5)).astype("float32")
    np.testing.assert_array_equal(block(films)[..., :5], films)


def test_its_stages_halve_the_side_and_end_at_a_sixteenth():
    model = build(taps=4)
    maps = [model.get_layer(f"gap_block{number}").input.shape[1:] for number in (1, 2, 3, 4)]
    assert [shape[0] for shape in maps] == [32, 16, 8, 4]
    assert [shape[2] for shape in maps] == [28, 50, 97, 144]
    stages = kxray.models.backbone_stages(model)
    assert len(stages) == 4 and stages[0][0] == "stem_conv" and stages[-1][-1] == "block4_bn"
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 1 + 2 * sum(_small_densenet.LAYERS) + 3
    assert model.count_params() < 200_000


def test_its_names_are_the_same_in_every_process():
    names = [[layer.name for layer in build(taps=1).layers] for _ in range(2)]
    assert names[0] == names[1]


def test_a_frozen_or_fine_tuned_network_takes_it_too():
    model = build("transfer", mode="fine_tune", trained_stages=1)
    trained = {variable.path.split("/")[0] for variable in model.trainable_variables}
    assert "logits" in trained and "block4_1_1_conv" in trained and "block3_1_1_conv" not in trained
    assert kxray.models.backbone_features(NAME) == 144
    kxray.models.check_backbone(NAME, 4, (32, 32))


def test_it_starts_from_a_run_of_another_model(tmp_path):
    run = written(build(taps=2), tmp_path / "run")
    trained = keras.saving.load_model(run / "model.keras")
    model = build("masked_densenet", num_labels=3, align=False)
    assert kxray.models.load_backbone_weights(model, NAME, run) > 40
    np.testing.assert_array_equal(
        model.get_layer("block4_8_2_conv").kernel, trained.get_layer("block4_8_2_conv").kernel
    )
    assert kxray.models.weights_digest(model) == kxray.models.weights_digest(trained)


def test_nobody_trained_it_on_imagenet(tmp_path):
    with pytest.raises(ValueError, match="imagenet: nobody trained SmallDenseNet on it; start from a run"):
        kxray.models.fetch_imagenet(NAME)
    with pytest.raises(ValueError, match="nobody trained SmallDenseNet"):
        kxray.models.load_backbone_weights(build(taps=1), NAME, "imagenet")
    (tmp_path / "some.weights.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="small_densenet starts from a run folder or a .keras file"):
        kxray.models.load_backbone_weights(build(taps=1), NAME, tmp_path / "some.weights.h5")
