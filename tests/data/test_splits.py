import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from PIL import Image

from kxray.data import audit, sources, splits


def films(count, **columns):
    return pd.DataFrame({"path": [f"/films/{i:04d}.png" for i in range(count)], **columns})


@st.composite
def tables(draw):
    """Random patients with random films; labels random, alike within a patient or not."""
    seed = draw(st.integers(0, 2**16))
    count = draw(st.integers(6, 120))
    patients = draw(st.integers(6, count))
    rng = np.random.default_rng(seed)
    # Every patient once, so that their number is known; the rest anywhere, with a few patients of many films.
    of = np.concatenate([np.arange(patients), (patients * rng.random(count - patients) ** 3).astype(int)])
    classes = draw(st.integers(1, 4))
    label = rng.integers(0, classes, count)
    findings = rng.random((count, 3)) < draw(st.sampled_from([0.02, 0.2, 0.6]))
    table = films(count, patient_id=[f"p{i}" for i in of], label=[f"class {i}" for i in label])
    for i, name in enumerate(("Mass", "Nodule", "Edema")):
        table[name] = findings[:, i].astype(float)
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


LABELS = st.sampled_from(["label", ["Mass", "Nodule", "Edema"], "Mass"])
QUICK = hypothesis.settings(max_examples=60, deadline=None)


@QUICK
@hypothesis.given(table=tables(), labels=LABELS, k=st.integers(2, 6), seed=st.integers(0, 9))
def test_folds_are_disjoint_complete_and_repeatable(table, labels, k, seed):
    split = splits.patient_folds(table, labels, k, seed)
    assert split.parts.shape == (len(table),)
    assert sorted(set(split.parts)) == list(range(k))
    for _, parts in pd.Series(split.parts).groupby(table["patient_id"].to_numpy()):
        assert parts.nunique() == 1
    assert (splits.patient_folds(table, labels, k, seed).parts == split.parts).all()
    assert split.grouping.kind == "patient_id"
    shuffled = table.sample(frac=1, random_state=seed)
    again = pd.Series(splits.patient_folds(shuffled, labels, k, seed).parts, index=shuffled.index)
    assert (again.sort_index().to_numpy() == split.parts).all()


@QUICK
@hypothesis.given(
    table=tables(), labels=LABELS, val=st.sampled_from([0.0, 0.1, 0.3]), test=st.sampled_from([0.15, 0.4])
)
def test_parts_are_disjoint_complete_and_near_their_share(table, labels, val, test):
    split = splits.patient_split(table, labels, val=val, test=test)
    expected = {"train": 1 - val - test, "val": val, "test": test}
    assert set(split.parts) == {name for name, share in expected.items() if share}
    for _, parts in pd.Series(split.parts).groupby(table["patient_id"].to_numpy()):
        assert parts.nunique() == 1
    # Every label is cut to within one group; a film belongs to the strata of all its labels.
    slack = 4 * split.grouping.largest + 2
    for name, share in expected.items():
        assert abs((split.parts == name).sum() - share * len(table)) <= slack


@QUICK
@hypothesis.given(counts=st.lists(st.integers(5, 40), min_size=1, max_size=4), k=st.integers(2, 5))
def test_lone_films_are_spread_evenly(counts, k):
    label = np.repeat([f"class {i}" for i in range(len(counts))], counts)
    table = films(len(label), patient_id=[f"p{i}" for i in range(len(label))], label=label)
    split = splits.patient_folds(table, "label", k)
    for name in set(label):
        sizes = np.bincount(split.parts[label == name], minlength=k)
        assert sizes.max() - sizes.min() <= 1
    one_hot = np.stack([label == name for name in sorted(set(label))], axis=1).astype(float)
    sizes = np.stack(
        [
            np.bincount(splits.patient_folds(table, one_hot, k).parts[column == 1], minlength=k)
            for column in one_hot.T
        ]
    )
    assert (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 1


def test_a_rare_finding_reaches_every_part():
    # Ten patients of 200 carry it: 7, 2 and 1, or 7, 1 and 2, is all that 70/15/15 can give.
    table = films(
        200, patient_id=[str(i) for i in range(200)], Mass=[1.0] * 10 + [0.0] * 190, Edema=[0.0, 1.0] * 100
    )
    split = splits.patient_split(table, ["Mass", "Edema"])
    mass = table["Mass"].to_numpy() == 1
    assert [(split.parts[mass] == name).sum() for name in ("train", "val", "test")] in ([7, 2, 1], [7, 1, 2])
    assert [(split.parts == name).sum() for name in ("train", "val", "test")] == [140, 30, 30]


def test_patients_with_many_films_are_not_all_for_training():
    patients = np.repeat(np.arange(60), [10] * 20 + [1] * 40)
    table = films(len(patients), patient_id=patients, label=["a", "b"] * (len(patients) // 2))
    split = splits.patient_split(table, "label", val=0.25, test=0.25)
    for name in ("val", "test"):
        part = patients[split.parts == name]
        assert 3 <= len(set(part[part < 20])) <= 7


def test_notes_name_classes_that_cannot_be_everywhere():
    table = films(20, patient_id=[str(i) for i in range(20)], label=["rare"] * 2 + ["common"] * 18)
    split = splits.patient_folds(table, "label", 4)
    assert len(split.notes) == 1
    assert split.notes[0].startswith("rare: 2 films in 2 groups only, none in fold ")
    assert split.facts()["notes"] == list(split.notes)
    assert split.facts()["groups"] == 20


def test_unknown_labels_are_a_class_of_their_own():
    table = films(12, patient_id=[str(i) for i in range(12)], Mass=[1.0, 0.0, np.nan] * 4)
    parts = splits.patient_folds(table, "Mass", 2).parts
    assert [int((parts[i::3] == 0).sum()) for i in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda t: splits.patient_folds(t, "label", 4),
            "4 folds need at least 4 groups, got 6 films in 3 groups",
        ),
        (lambda t: splits.patient_folds(t, "label", 1), "at least 2 folds"),
        (lambda t: splits.patient_folds(t, "view", 2), "expected label columns \\['view'\\]"),
        (lambda t: splits.patient_folds(t, np.zeros(5), 2), "one label a film, got 5 for 6"),
        (lambda t: splits.patient_split(t, "label", val=0.5, test=0.5), "val \\+ test < 1"),
        (
            lambda t: splits.patient_split(t.iloc[:4], "label"),
            "train and val and test need at least 3 groups",
        ),
        (
            lambda t: splits.given_split(
                t.assign(split=["train", "train", "Test", "test", "training", "train"])
            ),
            None,
        ),
        (
            lambda t: splits.given_split(t.assign(split=["train", "test"] * 3)),
            "3 groups have films in more than one part: 0 ",
        ),
        (lambda t: splits.given_split(t.assign(split=["train", ""] * 3)), "3 of 6 films have no value"),
        (
            lambda t: splits.given_split(t.assign(split=["train", "tset"] * 3)),
            "unknown split 'tset'; expected",
        ),
    ],
)
def test_what_cannot_be_split_says_why(call, said):
    table = films(6, patient_id=["0", "0", "1", "1", "2", "2"], label=["a", "b"] * 3)
    if said is None:
        assert call(table).parts.tolist() == ["train", "train", "test", "test", "train", "train"]
        return
    with pytest.raises(splits.SplitError, match=said):
        call(table)


def test_torn_groups_are_raised_not_asserted():
    splits.check_parts(np.array(["a", "a", "b"]), np.array([0, 0, 1]))
    with pytest.raises(splits.SplitError, match=r"1 groups have films in more than one part: a \(0 and 1\)"):
        splits.check_parts(np.array(["a", "a", "b"]), np.array([0, 1, 1]))
    assert splits.straddling_groups(["a", "a", "b"], ["val", "test", "val"]) == {"a": ["test", "val"]}


def test_hash_knows_neither_order_nor_place():
    table = films(6, split=["train", "val"] * 3)
    digest = splits.split_hash(table)
    assert len(digest) == 64
    assert splits.split_hash(table.iloc[::-1]) == digest
    assert splits.split_hash(table.assign(path=table["path"].str.replace("/films", "/else/where"))) == digest
    assert splits.split_hash(table.assign(split=["val", "train"] * 3)) != digest
    assert splits.split_hash(table.assign(path=table["path"].str.replace("0000", "9999"))) != digest


def test_saved_splits_come_back_or_say_why_not(tmp_path):
    table = films(6, split=["train", "val"] * 3)
    table.loc[0, "path"] = '/films/a, "b" ü.png'
    digest = splits.save_split(table, tmp_path / "split.csv")
    assert digest == splits.split_hash(table)
    assert splits.load_split(tmp_path / "split.csv", table.iloc[::-1]).tolist() == ["val", "train"] * 3
    with pytest.raises(splits.SplitError, match="is about 6 films, 5 of which are among the 5 given"):
        splits.load_split(tmp_path / "split.csv", table.iloc[1:])
    text = (tmp_path / "split.csv").read_text(encoding="utf-8")
    (tmp_path / "split.csv").write_text(text.replace("0003.png,val", "0003.png,train"), encoding="utf-8")
    with pytest.raises(splits.SplitError, match="no longer match the hash"):
        splits.load_split(tmp_path / "split.csv", table)
    (tmp_path / "split.csv").write_text("path,split\n")
    with pytest.raises(splits.SplitError, match="not a split"):
        splits.load_split(tmp_path / "split.csv", table)
    with pytest.raises(splits.SplitError, match="a path twice"):
        splits.save_split(pd.concat([table, table]), tmp_path / "split.csv")


def blurred_noise(rng, side=64):
    small = rng.random((6, 6)).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)


def test_without_patients_near_duplicates_stay_together(tmp_path):
    rng = np.random.default_rng(0)
    paths, pictures = [], [blurred_noise(rng) for _ in range(20)]
    for i, picture in enumerate(pictures):
        for copy, size in (("a", 64), ("b", 48)):
            path = tmp_path / f"{i}{copy}.png"
            Image.fromarray((picture * 255).astype(np.uint8)).resize((size, size)).save(path)
            paths.append(str(path))
    table = pd.DataFrame({"path": paths, "patient_id": "", "label": np.repeat(["x", "y"], 20)})
    split = splits.patient_folds(table, "label", 5)
    assert (split.parts[::2] == split.parts[1::2]).all()
    assert split.grouping.facts() == {
        "grouped_by": "near-duplicate groups (no patient ids)",
        "groups": 20,
        "largest_group": 2,
    }
    assert split.notes == ("grouped by near-duplicate groups (no patient ids): 20 groups, the largest of 2",)


def test_one_picture_under_two_patients_joins_them():
    rng = np.random.default_rng(1)
    thumbnails = np.stack([audit.thumbnail(blurred_noise(rng)) for _ in range(6)])
    thumbnails[3] = thumbnails[0]
    table = films(6, patient_id=["a", "a", "b", "b", "c", "c"])
    assert splits.film_groups(table).count == 3
    grouping = splits.film_groups(table, thumbnails=thumbnails)
    assert grouping.groups.tolist() == ["patient a"] * 4 + ["patient c"] * 2
    assert grouping.kind == "patient_id, 2 patients joined because they share near-duplicate films"
    grouping = splits.film_groups(
        table.assign(patient_id=["a", "a", "b", "", "c", ""]), thumbnails=thumbnails
    )
    assert grouping.groups[3] == "film 0003.png" == grouping.groups[0]
    assert grouping.kind == "patient_id, and near-duplicate groups for 2 films without one"
    with pytest.raises(ValueError, match="one thumbnail a film, got 5 for 6"):
        splits.film_groups(table, thumbnails=thumbnails[:5])


@pytest.mark.real_data
@pytest.mark.parametrize("seed", range(5))
def test_every_fold_of_the_views_has_laterals(real_data, seed):
    table = sources.read_source(real_data / "views")
    split = splits.patient_folds(table, "view", 5, seed)
    lateral = np.bincount(split.parts[(table["view"] == "lateral").to_numpy()], minlength=5)
    assert lateral.sum() == 36 and lateral.min() >= 4
    sizes = np.bincount(split.parts)
    assert sizes.min() >= 65 and sizes.max() <= 95
    assert split.notes == () and split.grouping.count == 217
    parts = splits.patient_split(table, "view", seed=seed).parts
    for name, least in (("val", 4), ("test", 4)):
        assert ((parts == name) & (table["view"] == "lateral").to_numpy()).sum() >= least


@pytest.mark.real_data
def test_findings_of_nih_are_even(real_data):
    table = sources.read_source(real_data / "nih")
    findings = ["Pneumonia", "Infiltration", "Atelectasis", "Effusion"]
    parts = splits.patient_folds(table, findings, 5).parts
    for name in findings:
        counts = np.bincount(parts[(table[name] == 1).to_numpy()])
        assert counts.max() - counts.min() <= 3
