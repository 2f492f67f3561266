"""Masked DenseNet: its layers under every ablation, its evidence in both frames, its masks, its errors."""

import math

import keras
import numpy as np
import pytest

import kxray
from kxray.data.similarity import Similarity
from kxray.layers import DiseaseAttention

NAME = "masked_densenet"
POSE = (0.35, math.log(1.1), 0.05, -0.08)


def build(**options):
    options = {
        "num_labels": 3,
        "image_size": (64, 64),
        "backbone": "small_densenet",
        "align_size": 32,
    } | options
    return kxray.models.build(NAME, **options)


def posed(model, pose=POSE):
    """The model, whose aligner now finds one pose in every film."""
    align = model.get_layer("align")
    # The passes add up; the network's weights start at 0, so that the biases alone speak.
    align.motion.bias.assign([pose[0] / 2, 0, 0, 0])
    return model


@pytest.fixture(scope="module")
def films():
    return np.random.default_rng(0).random((2, 64, 64, 1)).astype("float32")


@pytest.fixture(scope="module")
def plain():
    keras.utils.set_random_seed(0)
    return trained_like(build(align=False))


@pytest.fixture(scope="module")
def aligning():
    keras.utils.set_random_seed(1)
    return posed(trained_like(build()))


def trained_like(model, seed=0):
    """Gives attention and biases values that they do not start with."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, DiseaseAttention):
            layer.attention.assign(random.normal(size=layer.attention.shape))
            layer.bias.assign(random.normal(size=layer.bias.shape))
    return model


def numbers(outputs):
    return {name: value.numpy() for name, value in outputs.items()}


def names_of(model):
    return [layer.name for layer in model.layers]


def test_film_alignment_stages_attention_probabilities(aligning, films):
    names = names_of(aligning)
    assert names[:3] == ["film", "align", "pixel_range"] and names[-2:] == ["attend_block4", "probabilities"]
    assert not any(isinstance(layer, keras.Model) for layer in aligning.layers)
    assert not aligning.get_layer("align").trainable_variables
    assert not any("align" in variable.path for variable in aligning.trainable_variables)
    assert {layer.momentum for layer in aligning.layers if hasattr(layer, "momentum")} == {0.9}
    answer = aligning(films).numpy()
    assert answer.shape == (2, 3) and answer.dtype == np.float32 and (0 < answer).all() and (answer < 1).all()


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, ["attend_block4"]),
        ({"masking": "uniform"}, ["attend_block4"]),
        ({"masking": "none"}, ["gap_block4", "logits_block4"]),
        ({"taps": 2}, ["attend_block3", "attend_block4", "layer_relevance"]),
        (
            {"masking": "none", "taps": ("block2", "block4")},
            ["gap_block2", "gap_block4", "logits_block2", "logits_block4", "layer_relevance"],
        ),
    ],
)
def test_the_head_of_every_ablation(options, heads):
    model = build(align=False, **options)
    assert "align" not in names_of(model)
    kinds = ("attend_", "gap_", "logits_", "layer_relevance")
    assert [name for name in names_of(model) if name.startswith(kinds)] == heads
    kxray.models.freeze_backbone(model)
    trained = {variable.path.split("/")[0] for variable in model.trainable_variables}
    assert trained == {name for name in heads if not name.startswith("gap_")}


def test_without_alignment_and_masks_it_is_the_plain_network(films, tmp_path):
    ours = build(align=False, masking="none")
    theirs = kxray.models.build(
        "multiscale_densenet",
        num_labels=3,
        image_size=(64, 64),
        backbone="small_densenet",
        taps=1,
        head="sigmoid",
    )
    ours.save(tmp_path / "model.keras")
    spec = kxray.ModelSpec(NAME, ("a", "b", "c"), "multilabel", (64, 64))
    (tmp_path / "spec.json").write_text(spec.to_json())
    assert kxray.models.load_backbone_weights(theirs, "small_densenet", tmp_path)
    theirs.get_layer("logits_block4").set_weights(ours.get_layer("logits_block4").get_weights())
    np.testing.assert_allclose(ours(films), theirs(films), atol=1e-6)


@pytest.mark.parametrize(("taps", "masking"), [(1, "masks"), (3, "masks"), (1, "none"), (2, "none")])
def test_the_evidence_accounts_for_the_logits(films, taps, masking):
    model = trained_like(build(taps=taps, masking=masking, align=False))
    if taps > 1:
        scores = model.get_layer("layer_relevance").scores
        scores.assign(np.random.default_rng(1).normal(size=scores.shape))
    if masking == "masks":
        kxray.models.set_masks(model, np.random.default_rng(2).random((3, 16, 16)))
    answer = numbers(kxray.models.with_evidence(model)(films))
    biases = np.stack(
        [layer.bias.numpy() for layer in model.layers if layer.name.startswith(("attend_", "logits_"))]
    )
    pi = model.get_layer("layer_relevance").relevance().numpy() if taps > 1 else np.ones((1, 3))
    whole = answer["evidence_aligned"].mean(axis=(1, 2)) + (pi * biases).sum(axis=0)
    np.testing.assert_allclose(whole, answer["logits"], atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"], model(films), atol=1e-6)
    np.testing.assert_allclose(answer["probabilities"], 1 / (1 + np.exp(-answer["logits"])), atol=1e-5)
    side = 4 * 2 ** (taps - 1)
    assert answer["evidence_aligned"].shape == (2, side, side, 3)
    # Without alignment there is one frame.
    np.testing.assert_array_equal(answer["evidence"], answer["evidence_aligned"])
    np.testing.assert_array_equal(answer["aligned"], films)
    assert not answer["pose"].any() and (answer["confidence"] == 1).all()


def test_the_evidence_follows_the_training_of_its_model(films, plain):
    shown = kxray.models.with_evidence(plain)
    before = numbers(shown(films))
    layer = plain.get_layer("attend_block4")
    layer.bias.assign(layer.bias + 1.0)
    layer.projection.assign(2 * layer.projection)
    after = numbers(shown(films))
    np.testing.assert_allclose(after["evidence"], 2 * before["evidence"], rtol=1e-5)
    np.testing.assert_allclose(after["probabilities"], plain(films), atol=1e-6)
    assert {id(variable) for variable in shown.variables} == {id(variable) for variable in plain.variables}


def test_evidence_comes_back_to_the_film_by_the_inverse_of_the_pose(aligning, films):
    answer = numbers(kxray.models.with_evidence(aligning, (64, 64))(films))
    assert np.abs(answer["pose"][:, 0]).min() > 0.2 and answer["confidence"].shape == (2,)
    for index in range(2):
        pose = Similarity.from_pose(answer["pose"][index])
        aligned = pose.warp(films[index, ..., 0])
        np.testing.assert_allclose(answer["aligned"][index, ..., 0], aligned, atol=1e-5)
        coarse = answer["evidence_aligned"][index, ..., 1]
        fine = np.asarray(keras.ops.image.resize(coarse[..., None], (64, 64)))[..., 0]
        np.testing.assert_allclose(
            answer["evidence"][index, ..., 1], pose.warp(fine, inverse=True), atol=1e-5
        )
    assert answer["evidence"][0, 0, 0].tolist() == [0, 0, 0], "a turned frame does not reach the corner"


def test_a_known_aligner_is_taken_over(films):
    aligner = kxray.models.build("aligner", image_size=(128, 128), size=32)
    posed(aligner)
    model = build()
    kxray.models.copy_aligner(aligner, model)
    pose = numbers(kxray.models.with_evidence(model)(films))["pose"]
    np.testing.assert_allclose(pose, numbers(aligner(np.zeros((1, 128, 128, 1))))["pose"][[0, 0]], atol=1e-6)
    assert not model.get_layer("align").trainable_variables


def test_an_aligner_of_any_size_is_taken_over(films):
    fields = {"size": 48, "width": 2, "steps": 3}
    aligner = kxray.models.build("aligner", image_size=(64, 64), **fields)
    model = build(**{f"align_{name}": value for name, value in fields.items()})
    kxray.models.copy_aligner(aligner, model)
    assert model(films).shape == (2, 3)


def test_masks_by_object_by_array_and_when_built(films):
    from kxray.data.masks import DiseaseMasks

    maps = np.random.default_rng(0).random((3, 64, 64)).astype("float32")
    model = build(align=False, masks=maps, taps=2)
    for stage in ("block3", "block4"):
        np.testing.assert_array_equal(model.get_layer(f"attend_{stage}").masks, np.moveaxis(maps, 0, -1))
    kxray.models.set_masks(model, DiseaseMasks.uniform(("a", "b", "c"), 32))
    np.testing.assert_allclose(model.get_layer("attend_block4").masks, 1, atol=1e-6)


def test_a_mask_moves_what_counts(films, plain):
    left = np.zeros((3, 8, 8))
    left[:, :, :4] = 1
    attend = plain.get_layer("attend_block4")
    attend.attention.assign(0 * attend.attention)
    kxray.models.set_masks(plain, left)
    masked = numbers(kxray.models.with_evidence(plain)(films))["evidence_aligned"]
    kxray.models.set_masks(plain, np.ones((3, 8, 8)))
    free = numbers(kxray.models.with_evidence(plain)(films))["evidence_aligned"]
    # Columns 0 and 1 of 4 weigh 1, the others a tenth, in the middle of each half.
    np.testing.assert_allclose(masked[:, :, 0] / free[:, :, 0], 1 / 0.55, rtol=0.1)
    np.testing.assert_allclose(masked[:, :, 3] / free[:, :, 3], 0.1 / 0.55, rtol=0.1)


def test_float32_answers_under_half_precision(films):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("block4_1_1_conv").compute_dtype == "bfloat16"
    answer = kxray.models.with_evidence(model)(films)
    assert {value.dtype.name for value in answer.values()} == {"float32"}


def test_one_step_of_training_leaves_aligner_and_masks(films):
    model = posed(build(masks=np.random.default_rng(3).random((3, 64, 64))))
    fixed = [*model.get_layer("align").get_weights(), model.get_layer("attend_block4").masks.numpy()]
    start = model.get_layer("attend_block4").attention.numpy()
    model.compile("adam", "binary_crossentropy")
    model.train_on_batch(films, np.float32([[1, 0, 1], [0, 1, 0]]))
    now = [*model.get_layer("align").get_weights(), model.get_layer("attend_block4").masks.numpy()]
    for was, is_ in zip(fixed, now, strict=True):
        np.testing.assert_array_equal(was, is_)
    assert np.abs(model.get_layer("attend_block4").attention.numpy() - start).max() > 0


def test_densenet_121_by_default():
    model = kxray.models.build(NAME, image_size=(64, 64))
    assert model.get_layer("attend_block4").input.shape == (None, 2, 2, 1024)
    assert model.output_shape == (None, 8)
    parts = {layer.name: layer.count_params() for layer in model.layers}
    # keras.applications: 7,037,504 with three input channels; two kernels, bias, gamma and masks of 8.
    assert parts["attend_block4"] == 2 * 8 * 1024 + 8 + 8 + 64 * 64 * 8
    assert model.count_params() - parts["align"] - parts["attend_block4"] == 7_037_504 - 2 * 7 * 7 * 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masking": "some"}, "masking must be one of masks, uniform, none, got 'some'"),
        (
            {"masks": np.ones((3, 4, 4)), "masking": "uniform"},
            "masks are for masking='masks', got masking='uni",
        ),
        ({"masks": np.ones((2, 4, 4))}, "expected 3 masks"),
        ({"backbone": "mobilenetv2"}, "has no stages to tap; those that have are: .*small_densenet"),
        ({"taps": 5}, "small_densenet has 4 stages"),
        ({"floor": 0}, "floor must be above 0"),
        ({"head": "relu"}, "head must be"),
        ({"num_labels": 0}, "num_labels must be at least 1"),
        ({"batch_norm_momentum": 1}, r"batch_norm_momentum must be in \[0, 1\), got 1"),
        ({"image_size": (64, 96)}, "masks take square films, these are 64 x 96 pixels"),
        ({"image_size": (16, 64)}, "needs films of at least 32 x 32 pixels"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build(**{"align": False, **options})


def test_models_that_have_no_masks_or_no_evidence_say_so():
    with pytest.raises(ValueError, match="'masked_densenet' has no DiseaseAttention layer that takes masks"):
        kxray.models.set_masks(build(masking="none", align=False), np.ones((3, 4, 4)))
    with pytest.raises(ValueError, match="masks take square films, these are 96 x 64 pixels"):
        kxray.models.set_masks(build(masking="uniform", align=False, image_size=(96, 64)), np.ones((3, 4, 4)))
    with pytest.raises(ValueError, match="'view_cnn' 'dense_2', Dense, is in the way; take grad_cam"):
        kxray.models.with_evidence(kxray.models.build("view_cnn"))
