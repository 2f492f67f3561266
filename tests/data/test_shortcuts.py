import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kxray.data import patient_folds, shortcuts
from kxray.data.splits import Grouping


def write_film(path, seed, *, bits=8):
    rng = np.random.default_rng(seed)
    small = rng.random((6, 6)).astype(np.float32)
    pixels = np.asarray(Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC)).clip(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (pixels * 65535).astype(np.uint16) if bits == 16 else (pixels * 255).astype(np.uint8)
    Image.fromarray(array).save(path)
    return str(path)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """40 films, class b with 16 bits, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("films")
    labels = np.array(["a", "b"] * 20)
    paths = [write_film(folder / f"{i}.png", i, bits=16 if labels[i] == "b" else 8) for i in range(40)]
    (folder / "bad.png").write_bytes(b"no film")
    told = []
    scan = shortcuts.scan_shortcuts([*paths, folder / "bad.png"], progress=told.append)
    assert told[-1] == 41
    return scan, labels


def test_a_scan_keeps_what_is_no_anatomy(scanned):
    scan, _ = scanned
    assert list(scan.errors) == [40] and scan.headers[40] == {} and np.isnan(scan.features["all"][40]).all()
    assert list(scan.features) == list(shortcuts.SHOWN_AS)
    assert all(np.isfinite(columns[:40]).all() for columns in scan.features.values())
    assert scan.features["all"].shape[1] == sum(c.shape[1] for c in scan.features.values()) / 2
    some = scan.take([1, 0])
    assert [facts["bits"] for facts in some.headers] == [16, 8] and some.headers[0]["format"] == "png"
    properties = shortcuts.header_properties(scan.take(range(40)))
    assert set(properties) == {"bit depth", "bytes a pixel", "exposure"}
    assert properties["bit depth"][:3].tolist() == ["8", "16", "8"]


def test_the_frame_does_not_see_the_centre():
    film = np.full((80, 64), 0.3, np.float32)
    changed = film.copy()
    changed[10:70, 8:56] = 0.9
    np.testing.assert_array_equal(shortcuts.frame_features(film), shortcuts.frame_features(changed))
    changed[0:5, 0:4] = 1.0
    different = shortcuts.frame_features(film) != shortcuts.frame_features(changed)
    assert different.sum() == 1 and different[0]


def test_the_header_tells_a_class_coded_bit_depth_and_permuted_labels_give_chance(scanned):
    scan, labels = scanned
    scan = scan.take(range(40))
    groups = np.arange(40).astype(str)
    table = pd.DataFrame({"path": groups, "patient_id": groups})
    folds = patient_folds(table, labels, 4, grouping=Grouping(groups, "film")).parts
    features = {name: scan.features[name] for name in ("histogram", "header")}
    scores = shortcuts.shortcut_scores(features, labels, folds, groups, trees=30)
    assert scores["header"]["balanced_accuracy"]["value"] == 1.0
    assert 0.2 < scores["histogram"]["auroc"]["value"] <= 1.0
    assert set(scores["header"]) >= {"accuracy", "balanced_accuracy", "auroc", "recall", "confusion"}
    reached = []
    for seed in range(4):
        permuted = np.random.default_rng(seed).permutation(labels)
        again = shortcuts.shortcut_scores({"all": scan.features["all"]}, permuted, folds, groups, trees=30)
        reached.append(again["all"]["balanced_accuracy"]["value"])
    assert 0.35 < np.mean(reached) < 0.65


def test_chance_and_skill():
    labels = np.array(["a"] * 6 + ["b"] * 3 + ["c"])
    assert shortcuts.chance_scores(labels) == {
        "accuracy": 0.6, "balanced_accuracy": 1 / 3, "auroc": 0.5
    }  # fmt: skip
    assert shortcuts.skill(0.5, 2) == 0 and shortcuts.skill(1.0, 3) == 1
    assert shortcuts.skill(0.9, 2) == pytest.approx(0.8)
