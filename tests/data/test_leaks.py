import numpy as np
import pandas as pd
from PIL import Image

from kxray.data import leaks, shortcuts


def write_film(path, seed, *, size=48):
    small = np.random.default_rng(seed).random((6, 6)).astype(np.float32)
    pixels = np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    return str(path)


def test_leaks_are_told_from_harmless_pairs(tmp_path):
    first = write_film(tmp_path / "0.png", 0)
    paths = [first, write_film(tmp_path / "1.png", 1), write_film(tmp_path / "2.png", 2)]
    for name in ("copy.png", "again.png"):
        (tmp_path / name).write_bytes((tmp_path / "0.png").read_bytes())
        paths.append(str(tmp_path / name))
    paths.append(write_film(tmp_path / "small.png", 1, size=40))
    table = pd.DataFrame({"path": paths, "patient_id": ["p", "q", "r", "p", "s", "q"]})
    table["split"] = ["train", "train", "test", "training", "test", "train"]
    thumbnails = shortcuts.scan_shortcuts(paths).thumbnails
    pairs = leaks.duplicate_pairs(table, thumbnails, ["a", "a", "b", "a", "b", "a"])
    found = {
        (r.first, r.second): (r.kind, r.splits, r.labels, r.patients, r.leak) for r in pairs.itertuples()
    }
    assert found == {
        (0, 4): ("same file", "train and test", "a and b", "p and s", True),
        (3, 4): ("same file", "train and test", "a and b", "p and s", True),
        (0, 3): ("same file", "", "", "", False),
        (1, 5): ("near-duplicate", "", "", "", False),
    }
    assert pairs["leak"].tolist() == [True, True, False, False]
    named = leaks.pair_names(pairs, table)
    assert named["first"][0] == paths[0] and named["second"][0] == paths[4]
    lone = leaks.duplicate_pairs(table.iloc[:3], thumbnails[:3])
    assert len(lone) == 0 and list(lone.columns) == list(leaks.PAIR_COLUMNS)


def test_copies_differ_whatever_is_known_of_the_first(tmp_path):
    write_film(tmp_path / "0.png", 0)
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path in paths[1:]:
        (tmp_path / path).write_bytes((tmp_path / "0.png").read_bytes())
    table = pd.DataFrame({"path": paths, "split": ["", "train", "test", "val", "train"]})
    thumbnails = shortcuts.scan_shortcuts(paths).thumbnails

    def told(table, labels, what):
        pairs = leaks.duplicate_pairs(table, thumbnails, labels)
        return {(r.first, r.second): getattr(r, what) for r in pairs.itertuples() if getattr(r, what)}

    assert told(table, None, "splits") == {
        (1, 2): "train and test",
        (1, 3): "train and val",
        (2, 3): "test and val",
        (2, 4): "test and train",
        (3, 4): "val and train",
    }
    assert len(told(table, None, "leak")) == 5
    assert told(table, ["", "a", "a", "", "b"], "labels") == {(1, 4): "a and b", (2, 4): "a and b"}
    # Nearly as many patients as copies: with one other each is enough.
    by_patient = table.assign(patient_id=["", "p", "q", "r", "p"])
    assert told(by_patient, None, "patients").keys() >= {(1, 2), (1, 3)}
    lone = leaks.duplicate_pairs(table[["path"]].assign(patient_id=["", "p", "q", "r", "p"]), thumbnails)
    assert set(zip(lone["first"], lone["second"], strict=True)) == {
        (0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3)
    }  # fmt: skip


def test_identities_may_be_in_one_part_and_places_in_all():
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(6)],
            "patient_id": ["p", "p", "q", "q", "", ""],
            "split": ["train", "test", "val", "valid", "train", "test"],
            "hospital": ["h"] * 6,
            "study_date": ["d1", "d2", "d3", "d4", "d1", ""],
        }
    )
    found = leaks.straddling_columns(table)
    assert [(row["column"], row["value"], row["leak"]) for row in found] == [
        ("patient_id", "p", True),
        ("hospital", "h", False),
    ]
    assert found[0]["films"] == [0, 1] and found[0]["parts"] == ["test", "train"]
    assert found[1]["parts"] == ["test", "train", "val"]
    assert leaks.straddling_columns(table.drop(columns="split")) == []
    assert leaks.parts_of(table)[3] == "val" and leaks.parts_of(table.assign(split="")) is None
