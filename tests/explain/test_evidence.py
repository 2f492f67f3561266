"""Evidence accounts for the logit, comes back to the film, and its box holds the peak."""

import math

import keras
import numpy as np
import pytest
from keras import layers
from scipy import ndimage

import kxray
from kxray import explain
from kxray.data.similarity import Similarity
from kxray.explain.evidence import peak_box
from kxray.layers import DiseaseAttention, LayerRelevance, SimilarityAlign

POSE = (0.3, math.log(1.15), 0.08, -0.05)
CAMS = ("grad_cam", "grad_cam_pp", "layer_cam", "hires_cam")


def tiny(align=True, masking=True, taps=1, head="sigmoid", labels=3):
    """Two convolutions at 16 x 16 and 8 x 8 of a film of 32 x 32, with a vote or two."""
    keras.utils.set_random_seed(0)
    film = x = keras.Input((32, 32, 1))
    if align:
        x = SimilarityAlign(32, width=2, steps=1, name="align", trainable=False)(film)["aligned"]
    shallow = layers.Conv2D(5, 3, 2, "same", activation="relu", name="shallow")(x)
    deep = layers.Conv2D(6, 3, 2, "same", activation="relu", name="deep")(shallow)
    votes = []
    for features in (shallow, deep)[2 - taps :]:
        if masking:
            votes.append(DiseaseAttention(labels, mask_size=8)(features)["logits"])
        else:
            votes.append(layers.Dense(labels)(layers.GlobalAveragePooling2D()(features)))
    x = LayerRelevance(name="relevance")(votes) if taps > 1 else votes[0]
    model = keras.Model(film, layers.Activation(head)(x), name="tiny")
    random = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, DiseaseAttention):
            layer.attention.assign(random.normal(size=layer.attention.shape))
            layer.set_masks(random.random((labels, 8, 8)))
        if isinstance(layer, (DiseaseAttention, layers.Dense)):
            layer.bias.assign(random.normal(size=labels))
        if isinstance(layer, SimilarityAlign):
            pose_of(layer, POSE)
        if isinstance(layer, LayerRelevance):
            layer.scores.assign(random.normal(size=layer.scores.shape))
    return model


def pose_of(align, pose):
    """Makes an aligner of one pass, whose kernels start at 0, find this pose in every film."""
    reach = np.float32([0.8, 0.6, 0.4, 0.4])
    align.motion.bias.assign(reach * np.arctanh(np.float32(pose) / reach))


@pytest.fixture(scope="module")
def films():
    return np.random.default_rng(0).random((4, 32, 32, 1)).astype("float32")


def details(model, films, target, **options):
    found = explain.detailed_explainer(model, "evidence", **options)(films, np.int32(target))
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize(("masking", "taps"), [(True, 1), (True, 2), (False, 1), (False, 2)])
def test_it_accounts_for_the_logit(films, masking, taps):
    model = tiny(align=False, masking=masking, taps=taps)
    answer = details(model, films, [0, 2, 1, -1])
    np.testing.assert_allclose(model(films), 1 / (1 + np.exp(-answer["logits"])), atol=1e-6)
    unit = [0, 2, 1, answer["logits"][3].argmax()]
    kinds = (DiseaseAttention, layers.Dense)
    biases = np.stack([layer.bias.numpy() for layer in model.layers if isinstance(layer, kinds)])
    pi = model.get_layer("relevance").relevance().numpy() if taps > 1 else np.ones((1, 3))
    whole = answer["evidence_aligned"].mean(axis=(1, 2)) + (pi * biases).sum(axis=0)[unit]
    np.testing.assert_allclose(whole, answer["logits"][range(4), unit], atol=1e-5)
    # And so does the map on the film, where nothing was cut off.
    np.testing.assert_allclose(
        answer["heatmap"].mean(axis=(1, 2, 3)), answer["evidence_aligned"].mean(axis=(1, 2)), atol=1e-5
    )
    assert answer["evidence_aligned"].shape == (4, 8 * taps, 8 * taps)
    assert not answer["pose"].any() and (answer["confidence"] == 1).all()


def test_it_is_the_map_of_with_evidence(films):
    model = tiny()
    answer = details(model, films, [2, 0, 1, 1])
    named = kxray.models.with_evidence(model, (32, 32))(films)
    labels = [2, 0, 1, 1]
    chosen = named["evidence"].numpy()[range(4), :, :, labels]
    np.testing.assert_allclose(answer["heatmap"][..., 0], chosen, atol=1e-6)
    for name in ("pose", "confidence", "logits"):
        np.testing.assert_allclose(answer[name], named[name], atol=1e-6)
    np.testing.assert_allclose(answer["pose"], np.float32([POSE] * 4), atol=1e-5)


def test_the_map_lies_on_the_film_where_the_inverse_of_the_pose_puts_it(films):
    answer = details(tiny(), films, [0, 1, 2, 0])
    pose = Similarity.from_pose(POSE)
    for film in range(4):
        fine = np.asarray(keras.ops.image.resize(answer["evidence_aligned"][film][..., None], (32, 32)))
        back = pose.warp(fine[..., 0], inverse=True)
        np.testing.assert_allclose(answer["heatmap"][film, ..., 0], back, atol=1e-5)


def spot_model(align):
    """Explains how bright the film is, place by place."""
    film = x = keras.Input((48, 48, 1))
    if align:
        x = SimilarityAlign(32, width=2, steps=1, name="align")(film)["aligned"]
    copy = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="copy")(x)
    attend = DiseaseAttention(2, mask_size=8, name="attend")
    model = keras.Model(film, layers.Activation("sigmoid")(attend(copy)["logits"]))
    attend.projection.assign([[1.0, -1.0]])
    if align:
        pose_of(model.get_layer("align"), POSE)
    return model


@pytest.mark.parametrize("align", [False, True])
def test_a_planted_square_is_where_the_map_peaks_and_the_box_lies(align):
    film = np.zeros((1, 48, 48, 1), np.float32)
    film[0, 12:18, 26:36] = 1
    answer = details(spot_model(align), film, [0])
    row, column = np.unravel_index(answer["heatmap"][0, ..., 0].argmax(), (48, 48))
    assert 12 <= row < 18 and 26 <= column < 36
    x, y, width, height = answer["box"][0] * 48
    np.testing.assert_allclose([x, y, width, height], [26, 12, 10, 6], atol=1.01 if align else 1e-4)
    # It speaks against the other label, for which there is no box.
    against = details(spot_model(align), film, [1])
    np.testing.assert_allclose(against["heatmap"], -answer["heatmap"], atol=1e-6)
    assert against["box"].tolist() == [[0, 0, 0, 0]]


def test_boxes_are_those_of_the_labelled_region_that_holds_the_peak():
    random = np.random.default_rng(5)
    maps = np.stack([ndimage.gaussian_filter(random.normal(size=(30, 40)), 2) for _ in range(20)])
    boxes = peak_box(maps.astype("float32")).numpy() * (40, 30, 40, 30)
    for found, one in zip(boxes, maps.astype("float32"), strict=True):
        numbered, count = ndimage.label(one >= 0.5 * one.max(), structure=np.ones((3, 3)))
        assert count
        rows, columns = ndimage.find_objects(numbered)[numbered.flat[one.argmax()] - 1]
        expected = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_boxes_of_a_snake_of_nothing_and_of_everything():
    snake = np.zeros((3, 5, 5), np.float32)
    snake[0, [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 3, 4, 4], [0, 1, 2, 3, 4, 4, 4, 3, 2, 1, 0, 1, 2]] = 0.6
    snake[0, 4, 3] = 1
    snake[2] = 2
    np.testing.assert_allclose(peak_box(snake), [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]], atol=1e-6)
    assert peak_box(-snake[2:]).numpy().tolist() == [[0, 0, 0, 0]]


def test_methods_at_feature_resolution_come_back_to_the_film(films):
    turned, upright = tiny(masking=False, taps=1), tiny(masking=False, taps=1)
    pose_of(upright.get_layer("align"), (0, 0, 0, 0))
    plain = tiny(align=False, masking=False, taps=1)
    for name in ("shallow", "deep", plain.layers[-2].name):
        weights = plain.get_layer(name).get_weights()
        for model in (turned, upright):
            layer = model.layers[-2] if name == plain.layers[-2].name else model.get_layer(name)
            layer.set_weights(weights)
    pose = Similarity.from_pose(POSE)
    aligned = np.stack([pose.warp(film[..., 0]) for film in films])[..., None]
    for method in ("cam", *CAMS):
        made = explain.attribute(plain, aligned, 0, method)
        fine = np.asarray(keras.ops.image.resize(made, (32, 32)))[..., 0]
        back = np.stack([pose.warp(one, inverse=True) for one in fine])
        on_film = explain.attribute(turned, films, 0, method, upsample=True)[..., 0]
        peak = np.abs(back).max()
        np.testing.assert_allclose(on_film / peak, back / peak, atol=1e-3, err_msg=method)
        np.testing.assert_allclose(
            explain.attribute(upright, films, 0, method, upsample=True),
            explain.attribute(plain, films, 0, method, upsample=True),
            atol=1e-3 * peak,
            err_msg=method,
        )
    assert explain.attribute(turned, films, 0, "grad_cam").shape == (4, 8, 8, 1)


def test_stage_maps_come_back_too(films):
    model = tiny(masking=False, taps=2)
    found = explain.detailed_explainer(model, "multiscale_cam")(films, np.int32([0, 1, 2, 0]))
    rebuilt = np.einsum("ns,nshw->nhw", found["relevance_weights"], found["stage_maps"])
    np.testing.assert_allclose(rebuilt, found["heatmap"].numpy()[..., 0], atol=1e-5)
    evidence = kxray.models.with_evidence(model, (16, 16))(films)["evidence"].numpy()
    np.testing.assert_allclose(found["heatmap"][..., 0], evidence[range(4), :, :, [0, 1, 2, 0]], atol=1e-5)


def test_gradients_pass_the_aligner_and_the_attention(films):
    model = tiny()
    slopes = explain.attribute(model, films, 1, "gradient")
    assert slopes.shape == films.shape and np.isfinite(slopes).all() and np.abs(slopes).max() > 0
    random = np.random.default_rng(1)
    step = 1e-2 * random.normal(size=films.shape).astype("float32")

    def logits(images):
        return kxray.models.with_evidence(model)(images)["logits"].numpy()[:, 1]

    moved = logits(films + step / 2) - logits(films - step / 2)
    np.testing.assert_allclose(moved, (slopes * step).sum(axis=(1, 2, 3)), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("method", ["lrp", "rap"])
def test_methods_without_a_rule_name_the_layer(method):
    with pytest.raises(ValueError, match=r"no rule for layer 'align' \(SimilarityAlign\)") as refused:
        explain.explainer(tiny(), method)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"no rule for layer 'disease_attention\w*' \(DiseaseAttention\)"):
        explain.explainer(tiny(align=False), method)


def test_what_suits_which_model():
    assert explain.default_methods(tiny()) == ("evidence", "grad_cam")
    assert explain.default_methods(tiny(align=False)) == ("evidence", "grad_cam")
    assert explain.default_methods(tiny(masking=False)) == ("evidence", "grad_cam")
    assert explain.default_methods(tiny(align=False, masking=False)) == ("grad_cam",)
    assert explain.default_methods(tiny(align=False, masking=False, taps=2)) == ("multiscale_cam", "grad_cam")
    assert explain.default_methods(kxray.models.build("view_cnn")) == ("grad_cam",)


def test_a_batch_of_four_equals_four_batches_of_one(films):
    model = tiny(taps=2)
    together = details(model, films, [0, 1, 2, 0])
    for film, label in enumerate([0, 1, 2, 0]):
        alone = details(model, films[[film]], [label])
        for name, value in together.items():
            np.testing.assert_allclose(alone[name][0], value[film], atol=1e-5, err_msg=name)


def test_one_unit_is_explained_only_where_a_dense_layer_gives_its_logit(films):
    with pytest.raises(ValueError, match="evidence explains label 0 of 'tiny' only where a Dense layer"):
        explain.binary_explainer(tiny(labels=1), "evidence")
    model = tiny(masking=False, labels=1)
    both = explain.binary_explainer(model, "evidence")(films[[0, 0]], np.int32([0, 1]))
    heatmaps = both["heatmap"].numpy()
    np.testing.assert_allclose(heatmaps[0], -heatmaps[1], atol=1e-6)
    assert not np.allclose(both["box"][0], both["box"][1])


def test_models_without_evidence_are_refused():
    film = keras.Input((8, 8, 1))
    pooled = layers.GlobalMaxPooling2D(name="pool")(layers.Conv2D(2, 3)(film))
    with pytest.raises(ValueError, match="'pool', GlobalMaxPooling2D, is in the way; take grad_cam"):
        explain.explainer(keras.Model(film, layers.Dense(2)(pooled)), "evidence")
    anyhow = keras.Input((None, None, 1))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(anyhow))
    with pytest.raises(ValueError, match="evidence needs films of one size"):
        explain.explainer(keras.Model(anyhow, layers.Dense(2)(pooled)), "evidence")
