"""Templates and classical registration, on phantoms whose poses are known."""

import math

import numpy as np
import pytest

from kxray.data import Template, build_template, phantom, register, registration, template_regions
from kxray.data.registration import confidence, normalised, turned_scores
from kxray.data.similarity import Similarity

SIDE = 64


def halved(pixels):
    return pixels.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3), dtype=np.float32)


def film(patient, index, pose=None, view="frontal"):
    transform = None if pose is None else (pose.rotation, pose.scale, pose.shift)
    return halved(
        phantom.thorax(3, index, patient=patient, view=view, size=2 * SIDE, transform=transform).pixels
    )


def wide_pose(number):
    draw = np.random.default_rng([11, number])
    scale = math.exp(draw.uniform(math.log(0.8), math.log(1.25)))
    return Similarity(draw.uniform(-20, 20), scale, draw.uniform(-0.1, 0.1, 2))


@pytest.fixture(scope="module")
def template():
    """Of 20 films in wide poses."""
    films = np.stack([film(k, k, wide_pose(k)) for k in range(20)])
    return build_template(films, rounds=3, workers=1)


def test_contrast_does_not_know_exposure():
    films = np.stack([film(k, k) for k in range(3)])
    assert np.allclose(normalised(0.5 * films + 0.2), normalised(films), atol=0.01)
    assert np.abs(normalised(np.full((1, SIDE, SIDE), 0.7, np.float32))).max() < 0.01
    assert np.abs(normalised(films)).max() <= 2.5


def test_a_template_is_an_upright_chest_in_the_middle(template):
    assert template.pixels.shape == template.contrast.shape == (SIDE, SIDE)
    assert template.pixels.min() == 0 and template.pixels.max() == 1
    assert np.allclose(template.poses[template.used].mean(axis=0), 0, atol=0.02)
    assert template.used.mean() > 0.9 and np.median(template.scores) > 0.6
    assert 0.2 < template.threshold < np.median(template.scores)
    # The chest stands upright: its mirror image resembles it about the middle column.
    mirrored = template.contrast[:, ::-1]
    assert np.corrcoef(mirrored.ravel(), template.contrast.ravel())[0, 1] > 0.7
    # Sharp: no weaker than half of the contrast of a single film.
    assert template.contrast.std() > 0.5 * normalised(film(0, 0)[None]).std()


def test_known_poses_are_found(template):
    """The same patient upright and posed: what lies between the two poses is what was asked for."""
    asked = [wide_pose(100 + k) for k in range(10)]
    upright, _ = register(
        np.stack([film(50 + k, 2 * k, Similarity()) for k in range(10)]), template, workers=1
    )
    posed, scores = register(
        np.stack([film(50 + k, 2 * k + 1, pose) for k, pose in enumerate(asked)]), template, workers=1
    )
    residuals = []
    for before, after, pose in zip(upright, posed, asked, strict=True):
        found = Similarity.from_pose(before).inverse().then(Similarity.from_pose(after))
        shift = math.dist(found.shift, pose.shift)
        residuals.append((abs(found.rotation - pose.rotation), abs(found.scale / pose.scale - 1), shift))
    rotation, scale, shift = np.median(residuals, axis=0)
    assert rotation < 1.5 and scale < 0.03 and shift < 0.02
    assert (scores >= template.threshold).mean() > 0.8


def test_a_batch_is_its_films_one_by_one(template):
    films = np.stack([film(60 + k, k, wide_pose(k)) for k in range(3)])
    told = []
    poses, scores = register(
        films, template, workers=2, progress=lambda done, total: told.append((done, total))
    )
    for k in range(3):
        pose, score = register(films[k : k + 1], template, workers=1)
        assert np.array_equal(pose[0], poses[k]) and score[0] == scores[k]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert poses.dtype == scores.dtype == np.float32


def test_what_is_no_upright_chest_scores_below(template):
    rng = np.random.default_rng(0)
    chests = np.stack([film(70 + k, k) for k in range(4)])
    others = [np.zeros((SIDE, SIDE)), rng.random((SIDE, SIDE)), np.eye(SIDE), *np.rot90(chests, axes=(1, 2))]
    _, scores = register(np.stack([np.float32(other) for other in others]), template, workers=1)
    assert scores[0] == 0 and (scores < template.threshold).all()
    assert (confidence(scores, template) < 0.5).all()
    assert np.median(confidence(register(chests, template, workers=1)[1], template)) > 0.7
    for turns in range(4):
        turned = turned_scores(np.rot90(chests, turns, axes=(1, 2)), template)
        assert (turned.argmax(axis=1) == (4 - turns) % 4).all()


def test_films_of_another_kind_do_no_harm():
    films = [film(k, k, wide_pose(k)) for k in range(10)]
    strangers = [np.float32(np.random.default_rng(k).random((SIDE, SIDE))) for k in range(2)]
    mixed = build_template(np.stack([*films, *strangers]), rounds=2, workers=1)
    assert mixed.used[:10].all() and not mixed.used[10:].any()


def test_lungs_and_heart_are_found_on_the_template(template):
    regions = template_regions(template)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    middle = {name: (columns[mask].mean(), rows[mask].mean()) for name, mask in regions.items()}
    assert middle["right_lung"][0] < SIDE * 0.4 and middle["left_lung"][0] > SIDE * 0.6
    assert SIDE * 0.4 < middle["heart"][0] < SIDE * 0.65 and middle["heart"][1] > SIDE * 0.45
    for name in ("right_lung", "left_lung"):
        assert 0.05 < regions[name].mean() < 0.3
        assert template.pixels[regions[name]].mean() < template.pixels[regions["heart"]].mean() - 0.2
    assert not (regions["heart"] & (regions["right_lung"] | regions["left_lung"])).any()


def test_a_template_without_lungs_has_empty_regions(template):
    flat = np.zeros((SIDE, SIDE), np.float32)
    bare = Template(flat, flat, template.poses, template.scores, template.used, 0.5)
    assert not any(mask.any() for mask in template_regions(bare).values())


def test_a_template_is_saved_whole(template, tmp_path):
    template.save(tmp_path / "template.npz")
    again = Template.load(tmp_path / "template.npz")
    assert again.size == SIDE and again.threshold == template.threshold
    for name in ("pixels", "contrast", "poses", "scores", "used"):
        assert np.array_equal(getattr(again, name), getattr(template, name))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "template.npz").read_bytes()[:1000])
    for name in ("torn.npz", "absent.npz"):
        with pytest.raises(ValueError, match="not a readable template"):
            Template.load(tmp_path / name)
    arrays = dict(np.load(tmp_path / "template.npz"))
    for changed in ({"threshold": np.zeros(3)}, {"pixels": np.zeros((4, 6), np.float32)}):
        np.savez(tmp_path / "other.npz", **{**arrays, **changed})
        with pytest.raises(ValueError, match=f"not a readable template .{next(iter(changed))} of shape"):
            Template.load(tmp_path / "other.npz")


def test_a_template_makes_its_bank_once(template, monkeypatch):
    films = np.stack([film(k, k) for k in range(2)])
    turned = turned_scores(films, template)
    monkeypatch.setattr(registration, "Bank", None)
    assert np.array_equal(turned_scores(films, template), turned)
    register(films, template, workers=1)


def test_wrong_films_are_named(template):
    with pytest.raises(ValueError, match=r"square films .* from 32 to 128, got \(1, 64, 48\)"):
        build_template(np.zeros((1, 64, 48), np.float32))
    with pytest.raises(ValueError, match="float films in"):
        build_template(np.zeros((2, 64, 64), np.uint8))
    with pytest.raises(ValueError, match="2 films and more, got 1"):
        build_template(np.zeros((1, 64, 64), np.float32))
    with pytest.raises(ValueError, match="nothing in common"):
        build_template(np.zeros((4, 64, 64), np.float32))
    with pytest.raises(ValueError, match=r"takes films of \(64, 64\), got \(32, 32\)"):
        register(np.zeros((1, 32, 32), np.float32), template)
