import io
import os
import shutil

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from kxray.data import audit, sources, splits


def picture(seed, side=96):
    """Smooth light and dark with structure at several scales, in [0, 1]."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.random((n, n)).astype(np.float32)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
        )
        for n in (3, 6, 12)
    ]
    mixed = sum(layers)
    return (mixed - mixed.min()) / (mixed.max() - mixed.min())


def as_jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32) / 255


def resized(pixels, width, height):
    image = Image.fromarray(pixels.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).clip(0, 1)


ALTERED = {
    "half size": lambda x: resized(x, 48, 48),
    "other aspect": lambda x: resized(x, 96, 64),
    "recompressed": lambda x: as_jpeg(x, 40),
    "darker": lambda x: x**1.4,
    "brighter": lambda x: x**0.7,
    "more contrast": lambda x: ((x - 0.5) * 1.3 + 0.5).clip(0, 1),
    "noisy": lambda x: (x + np.random.default_rng(0).normal(0, 0.04, x.shape)).clip(0, 1),
}


@pytest.mark.parametrize("name", ALTERED)
def test_altered_films_are_found_and_others_are_not(name):
    films = [picture(seed) for seed in range(40)]
    thumbnails = np.stack([audit.thumbnail(x) for x in films + [ALTERED[name](x) for x in films]])
    pairs, correlations = audit.near_duplicate_pairs(thumbnails)
    assert pairs.tolist() == [[i, i + 40] for i in range(40)]
    assert correlations.min() >= audit.LEAST_CORRELATION
    groups = audit.near_duplicate_groups(thumbnails)
    assert (groups[:40] == groups[40:]).all() and len(set(groups)) == 40


def test_blank_films_match_nothing():
    thumbnails = np.zeros((3, 32, 32), np.uint8)
    assert len(set(audit.near_duplicate_groups(thumbnails))) == 3
    assert audit.thumbnail(np.full((50, 40), 0.7)).max() == 0
    assert len(audit.near_duplicate_groups(thumbnails[:0])) == 0
    with pytest.raises(ValueError, match=r"expected thumbnails \(N, 32, 32\), got \(2, 8, 8\)"):
        audit.near_duplicate_pairs(np.zeros((2, 8, 8)))


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(seed=st.integers(0, 999), count=st.integers(2, 60))
def test_the_index_finds_what_comparing_all_pairs_finds(seed, count):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**63, dtype=np.uint64)
    flips = rng.integers(0, 2**63, (count, 3), dtype=np.uint64)
    # And-ing random words leaves few bits, so that distances on both sides of the limit occur.
    hashes = base ^ (flips[:, 0] & flips[:, 1] & flips[:, 2] & np.uint64(0xFFFFFFFF))
    found = np.concatenate([audit._pairs_in_band(hashes, *band) for band in audit._BANDS])
    found = {tuple(pair) for pair in found.tolist()}
    apart = [[(int(a) ^ int(b)).bit_count() for b in hashes] for a in hashes]
    assert found == {(i, j) for i in range(count) for j in range(i + 1, count) if apart[i][j] <= 8}


def test_a_crowded_bucket_is_worked_off_in_slices(monkeypatch):
    thumbnails = np.stack([audit.thumbnail(picture(0))] * 50)
    whole = audit.near_duplicate_pairs(thumbnails)[0]
    monkeypatch.setattr(audit, "_PAIRS_AT_ONCE", 100)
    assert len(whole) == 50 * 49 // 2
    assert (audit.near_duplicate_pairs(thumbnails)[0] == whole).all()


def write_film(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture(seed, 40) * 255).astype(np.uint8)).save(path)
    return str(path)


def test_scan_reads_each_film_once_and_keeps_going(tmp_path):
    paths = [write_film(tmp_path / f"{i}.png", i) for i in range(3)]
    (tmp_path / "bad.png").write_bytes(b"no film")
    scan = audit.scan_films([*paths[:2], tmp_path / "bad.png", paths[2]])
    assert list(scan.errors) == [2] and "bad.png" in scan.errors[2]
    assert scan.thumbnails.shape == (4, 32, 32) and not scan.thumbnails[2].any()
    assert np.isnan(scan.features[2]).all() and np.isfinite(scan.features[[0, 1, 3]]).all()
    pixels = np.asarray(Image.open(paths[2]), np.float32) / 255
    np.testing.assert_array_equal(scan.features[3], audit.no_anatomy_features(pixels))


def test_exact_duplicates_have_the_same_bytes(tmp_path):
    first = write_film(tmp_path / "a.png", 1)
    shutil.copy(first, tmp_path / "b.png")
    groups = audit.exact_duplicate_groups([first, write_film(tmp_path / "c.png", 2), tmp_path / "b.png"])
    assert groups[0] == groups[2] != groups[1]
    with pytest.raises(ValueError, match="cannot read .*none.png"):
        audit.exact_duplicate_groups([tmp_path / "none.png"])


def test_fingerprint_knows_content_and_labels_only(tmp_path):
    paths = [write_film(tmp_path / "here" / f"{i}.png", i) for i in range(3)]
    table = pd.DataFrame({"path": paths, "patient_id": "1", "view": ["a", "b", "a"], "Mass": [1, 0, np.nan]})
    digest = audit.fingerprint(table)
    assert len(digest) == 64
    assert audit.fingerprint(table.iloc[::-1]) == digest
    assert audit.fingerprint(table.assign(split="train", age=5)) == digest
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = table.assign(path=[path.replace("here", "there") for path in paths])
    assert audit.fingerprint(moved) == digest
    assert audit.fingerprint(table.assign(view=["b", "b", "a"])) != digest
    assert audit.fingerprint(table.assign(Mass=[1, 0, 0])) != digest
    stamp = os.stat(paths[0]).st_mtime_ns
    write_film(tmp_path / "here" / "0.png", 9)
    os.utime(paths[0], ns=(stamp + 10, stamp + 10))
    assert audit.fingerprint(table) != digest


def test_features_of_a_film_worked_out_by_hand():
    pixels = np.zeros((50, 50), np.float32)
    pixels[:2] = 1.0
    features = dict(zip(audit.FEATURE_NAMES, audit.no_anatomy_features(pixels), strict=True))
    assert features["grey_0"] == np.float32(0.96) and features["grey_31"] == np.float32(0.04)
    assert features["grey_mean"] == pytest.approx(0.04) and features["grey_levels"] == 1.0
    assert (features["top_mean"], features["bottom_mean"]) == (1.0, 0.0)
    assert features["left_mean"] == pytest.approx(0.04) and features["left_white"] == pytest.approx(0.04)
    assert features["top_white"] == 1.0 and features["bottom_black"] == 1.0
    # One edge in 49 row steps; none across.
    assert features["gradient"] == pytest.approx(1 / 49)
    assert features["noise"] == 0.0 and features["clipped_white"] == pytest.approx(0.04)
    slices = list(audit.FEATURE_GROUPS.values())
    assert slices[0].start == 0 and slices[-1].stop == len(audit.FEATURE_NAMES)
    assert all(left.stop == right.start for left, right in zip(slices, slices[1:], strict=False))


def test_noise_is_measured_in_grey_values():
    noisy = np.random.default_rng(0).normal(0.5, 0.02, (200, 200)).clip(0, 1)
    assert audit.no_anatomy_features(noisy)[list(audit.FEATURE_NAMES).index("noise")] == pytest.approx(
        0.02, rel=0.05
    )


def test_features_do_not_see_where_things_are():
    film = np.full((100, 100), 0.2, np.float32)
    left, right = film.copy(), film.copy()
    left[40:60, 20:30] = 0.9
    right[56:76, 60:70] = 0.9
    np.testing.assert_allclose(audit.no_anatomy_features(left), audit.no_anatomy_features(right), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 200), (5, 5)])
def test_features_of_tiny_films_are_finite(size):
    assert np.isfinite(audit.no_anatomy_features(np.full(size, 0.5))).all()
    assert np.isfinite(audit.no_anatomy_features(np.zeros(size))).all()


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((4, 4, 3)), r"shape \(4, 4, 3\)"),
        (np.full((4, 4), 255), r"in \[0, 1\], got 255 to 255"),
        (np.full((4, 4), np.nan), r"in \[0, 1\], got nan"),
    ],
)
def test_what_is_no_grey_film_says_so(pixels, said):
    with pytest.raises(ValueError, match=said):
        audit.no_anatomy_features(pixels)


def test_baseline_finds_a_shortcut_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 60)
    features = rng.normal(size=(120, 5))
    folds = rng.permutation(np.arange(120) % 4)
    chance = audit.no_anatomy_baseline(features, labels, folds, trees=50)
    assert chance.shape == (120, 2)
    np.testing.assert_allclose(chance.sum(axis=1), 1, atol=1e-6)
    assert 0.3 < roc_auc_score(labels == "b", chance[:, 1]) < 0.7
    features[:, 2] += 3 * (labels == "b")
    told = audit.no_anatomy_baseline(features, labels, folds, trees=50)
    assert roc_auc_score(labels == "b", told[:, 1]) > 0.95
    np.testing.assert_array_equal(told, audit.no_anatomy_baseline(features, labels, folds, trees=50))


def test_a_scored_film_does_not_enter_its_own_forest():
    # Each film its own class pattern by an identifying feature: only memory could get these right.
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(80, 3)), rng.integers(0, 2, 80)
    folds = np.arange(80) % 5
    before = audit.no_anatomy_baseline(features, labels, folds, trees=20)
    flipped = labels.copy()
    flipped[folds == 2] = 1 - flipped[folds == 2]
    after = audit.no_anatomy_baseline(features, flipped, folds, trees=20)
    np.testing.assert_array_equal(before[folds == 2], after[folds == 2])


def test_baseline_of_a_split_and_of_findings():
    rng = np.random.default_rng(0)
    features = rng.random((90, 4))
    folds = np.where(np.arange(90) % 3 == 0, 0, -1)
    findings = (features[:, :2] > 0.5).astype(float)
    findings[::7, 1] = np.nan
    scores = audit.no_anatomy_baseline(features, findings, folds, trees=50)
    assert scores.shape == (90, 2)
    assert np.isnan(scores[folds < 0]).all() and np.isfinite(scores[folds == 0]).all()
    assert roc_auc_score(findings[folds == 0, 0], scores[folds == 0, 0]) > 0.95
    with pytest.raises(ValueError, match="1 films have no features"):
        features[3] = np.nan
        audit.no_anatomy_baseline(features, findings, folds)
    with pytest.raises(ValueError, match="one row of features"):
        audit.no_anatomy_baseline(features, findings[:5], folds)


@pytest.mark.real_data
def test_views_hold_the_same_films_under_two_patients(real_data):
    table = sources.read_source(real_data / "views")
    scan = audit.scan_films(list(table["path"]))
    assert not scan.errors
    pairs, _ = audit.near_duplicate_pairs(scan.thumbnails)
    patients = table["patient_id"].to_numpy()[pairs]
    across = {tuple(sorted(pair)) for pair in patients.tolist() if pair[0] != pair[1]}
    assert across == {("178", "97")}
    assert splits.film_groups(table, thumbnails=scan.thumbnails).count == 216


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "least", "most"), [("tb", 0.92, 0.98), ("fishbones", 0.70, 0.88)])
def test_how_far_no_anatomy_gets(real_data, name, least, most):
    table = sources.read_source(real_data / name)
    scan = audit.scan_films(list(table["path"]))
    grouping = splits.film_groups(table, thumbnails=scan.thumbnails)
    assert grouping.count == len(table)
    folds = splits.patient_folds(table, "label", 5, grouping=grouping).parts
    scores = audit.no_anatomy_baseline(scan.features, table["label"].to_numpy(dtype=str), folds)
    classes = np.unique(table["label"].to_numpy(dtype=str))
    assert least < np.mean(classes[scores.argmax(axis=1)] == table["label"].to_numpy()) < most
