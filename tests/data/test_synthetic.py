import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kxray
from kxray import data
from kxray.data import splits, synthetic
from kxray.data.synthetic import SyntheticFacts
from kxray.io.marks import class_folder

FACTS = SyntheticFacts("attention_cgan", "0123456789ab", ("Mass", "Nodule", "No Finding"), view="frontal")


@pytest.fixture
def films():
    return np.random.default_rng(0).random((4, 20, 24)).astype("float32")


@pytest.fixture
def written(films, tmp_path):
    labels = ["Mass", "Nodule", "Nodule", "No Finding"]
    return synthetic.write_synthetic(tmp_path / "made", films, labels, FACTS, seed=3)


def real_films(count):
    return pd.DataFrame(
        {
            "path": [f"/films/{k:03d}.png" for k in range(count)],
            "patient_id": [f"p{k // 2}" for k in range(count)],
            "label": ["Mass" if k % 4 < 2 else "Nodule" for k in range(count)],
        }
    )


def with_synthetic(count, made):
    """`count` real films of two a patient, and `made` synthetic ones at the end."""
    more = pd.DataFrame(
        {
            "path": [f"/made/{k:03d}.png" for k in range(made)],
            "patient_id": [f"synthetic-ab-00-0-{k:06d}" for k in range(made)],
            "label": "Nodule",
            "synthetic": 1.0,
        }
    )
    return pd.concat([real_films(count), more], ignore_index=True)


def test_the_manifest_says_what_the_films_are(written, films):
    table = data.read_manifest(written)
    assert table["synthetic"].tolist() == [1, 1, 1, 1]
    assert table["patient_id"].is_unique and table["path"].is_unique
    assert table["patient_id"].str.startswith("synthetic-0123456789ab-").all()
    assert data.finding_columns(table) == ["Mass", "Nodule"]
    assert table[["Mass", "Nodule"]].to_numpy().tolist() == [[1, 0], [0, 1], [0, 1], [0, 0]]
    assert table["view"].tolist() == ["frontal"] * 4
    assert table["number"].tolist() == [0, 0, 1, 0] and set(table["seed"]) == {3}
    for path, pixels in zip(table["path"], films, strict=True):
        np.testing.assert_allclose(kxray.read_image(path).pixels, pixels, atol=1 / 65535)


def test_classes_that_are_no_findings_are_one_column(films, tmp_path):
    facts = SyntheticFacts("cdcgan", "ab", ("rib", "spine"), findings=False)
    path = synthetic.write_synthetic(
        tmp_path, films[:2], ["rib", "spine"], facts, columns={"nearest_distance": [1, 2]}
    )
    table = data.read_manifest(path)
    assert table["label"].tolist() == ["rib", "spine"]
    assert data.finding_columns(table) == [] and "view" not in table.columns
    assert table["nearest_distance"].tolist() == [1, 2]


def test_a_png_says_that_it_is_synthetic(written):
    path = data.read_manifest(written)["path"][1]
    with Image.open(path) as picture:
        texts = picture.text
        assert picture.mode == "I;16"
    assert texts["Software"] == "kxray" and texts["Synthetic"] == "yes"
    assert [texts[name] for name in ("Model", "Run", "Condition", "Seed", "Number")] == [
        *("attention_cgan", "0123456789ab", "Nodule", "3", "0")
    ]
    assert data.is_synthetic(path)
    assert kxray.read_image(path).facts["synthetic"] is True


def test_a_dicom_film_says_that_it_is_synthetic(films, tmp_path):
    import pydicom

    table = data.read_manifest(data.write_synthetic(tmp_path, films[:1], ["Mass"], FACTS, format="dicom"))
    path = table["path"][0]
    header = pydicom.dcmread(path)
    assert header.SyntheticData == "YES" and header.ConversionType == "SYN"
    assert list(header.ImageType) == ["DERIVED", "SECONDARY", "SYNTHETIC"]
    assert header.BurnedInAnnotation == "NO" and "SYNTHETIC" in header.ImageComments
    assert "attention_cgan, run 0123456789ab, condition Mass, seed 0" in header.DerivationDescription
    assert header.PatientID == table["patient_id"][0]
    film = kxray.read_image(path)
    assert film.facts["synthetic"] is True
    np.testing.assert_allclose(film.pixels, films[0], atol=1 / 4095)
    assert data.is_synthetic(path)


@pytest.mark.parametrize("format", ["png", "dicom"])
def test_a_phantom_and_an_ordinary_film_are_not_marked(format, tmp_path):
    from kxray.data.phantom import Mix, write_phantoms

    write_phantoms(tmp_path, "thorax", 2, 0, mix=Mix(size=48, format=format), workers=1)
    table = data.read_manifest(tmp_path / "manifest.csv")
    assert not data.synthetic_rows(table, marks=True).any()
    assert "synthetic" not in kxray.read_image(table["path"][0]).facts


def test_files_that_say_nothing_are_not_marked(films, tmp_path):
    (tmp_path / "text.png").write_text("no film")
    (tmp_path / "cut.png").write_bytes(kxray.io.encode_png16(films[0])[:40])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "film.jpg")
    for name in ("text.png", "cut.png", "film.jpg", "missing.png"):
        assert not data.is_synthetic(tmp_path / name)


def test_synthetic_rows_are_found_by_column_patient_or_mark(written):
    table = data.read_manifest(written)
    assert data.synthetic_rows(table).all()
    assert data.synthetic_rows(table.drop(columns="synthetic")).all()
    assert data.synthetic_rows(table.assign(patient_id="")).all()
    bare = table.drop(columns="synthetic").assign(patient_id="p1")
    assert not data.synthetic_rows(bare).any()
    assert data.synthetic_rows(bare, marks=True).all()
    assert not data.synthetic_rows(pd.DataFrame({"path": ["a"], "synthetic": [pd.NA]})).any()
    mixed = pd.DataFrame({"path": ["a", "b", "c"], "synthetic": [np.nan, 0.0, 1.0]})
    assert data.synthetic_rows(mixed).tolist() == [False, False, True]
    assert data.synthetic_rows(mixed.assign(synthetic=["", "no", "yes"])).tolist() == [False, False, True]


def test_a_split_keeps_synthetic_films_in_train():
    table = with_synthetic(40, 30)
    real = splits.patient_split(table[:40], "label", val=0.2, test=0.2, seed=1)
    for labels in ("label", table["label"], table["label"].to_numpy()):
        split = splits.patient_split(table, labels, val=0.2, test=0.2, seed=1)
        assert (split.parts[:40] == real.parts).all()
        assert (split.parts[40:] == "train").all()
        assert split.notes == ("30 synthetic films are in train only",)


def test_splits_refuse_synthetic_films_in_validation_and_test():
    table = with_synthetic(40, 2)
    with pytest.raises(
        splits.SplitError, match=r"/made/000.png and 1 more: a synthetic film is for training"
    ):
        splits.patient_folds(table, "label", 2)
    for part in ("val", "test"):
        given = table.assign(split=["train"] * 41 + [part])
        with pytest.raises(splits.SplitError, match=rf"/made/001.png: .* it is in part '{part}'; move"):
            splits.given_split(given)
        with pytest.raises(splits.SplitError, match="/made/001.png"):
            data.check_held_out(given, given["split"])
    assert (splits.given_split(table.assign(split="train")).parts == "train").all()
    with pytest.raises(splits.SplitError, match="fold 1 would test on it"):
        data.check_held_out(table, np.arange(42) % 2 + 1)
    with pytest.raises(splits.SplitError, match="all 2 films are synthetic"):
        splits.patient_split(table[40:].reset_index(drop=True), "label")


def test_a_folder_without_a_table_is_refused_by_its_files(written, tmp_path):
    paths = data.read_manifest(written)["path"]
    table = pd.DataFrame({"path": paths, "split": ["train", "train", "train", "test"]})
    with pytest.raises(splits.SplitError, match="a synthetic film is for training only"):
        splits.given_split(table)


def test_files_that_are_held_out_are_asked(written, tmp_path):
    """A table may say that a marked film is of some patient."""
    made = data.read_manifest(written)["path"]
    table = real_films(40)
    table.loc[:3, "path"] = made.to_numpy()
    given = table.assign(split=["test"] * 2 + ["train"] * 38)
    with pytest.raises(splits.SplitError, match="and 1 more: a synthetic film is for training only"):
        splits.given_split(given)
    with pytest.raises(splits.SplitError, match="and 3 more: .* a fold would test on it"):
        splits.patient_folds(table, "label", 2)
    for seed in range(8):
        parts = splits.patient_split(table, "label", val=0.4, test=0.4, seed=seed).parts
        assert (parts[:4] == "train").all()


def test_an_official_split_says_nothing_of_synthetic_films():
    table = with_synthetic(40, 2)
    given = ["train"] * 20 + ["test"] * 20 + [""] * 2
    table = table.assign(split=given)
    assert splits.has_split(table)
    parts = splits.given_split(table).parts
    assert parts.tolist() == [*given[:40], "train", "train"]
    table.loc[3, "split"] = ""
    assert not splits.has_split(table)
    with pytest.raises(splits.SplitError, match="1 of 42 films have no value"):
        splits.given_split(table)
    assert not splits.has_split(table.assign(split="")) and not splits.has_split(table.drop(columns="split"))


def test_no_two_classes_share_a_folder(films, tmp_path):
    labels = ("骨", "肋", "a/b", "a b", "a.b", "a_b", "../up", "x" * 300)
    facts = SyntheticFacts("cdcgan", "ab", labels, findings=False)
    chosen = np.repeat(films[:1], len(labels), axis=0)
    table = data.read_manifest(data.write_synthetic(tmp_path / "made", chosen, labels, facts))
    assert table["path"].is_unique and table["condition"].tolist() == list(labels)
    assert all((tmp_path / "made" / "films") in path.parents for path in map(Path, table["path"]))
    assert class_folder("Nodule") == "Nodule" and class_folder("骨") == "骨"


def test_classes_that_are_numbers_stay_text(films, tmp_path):
    facts = SyntheticFacts("cdcgan", "ab", ("0", "1"), findings=False)
    table = data.read_manifest(data.write_synthetic(tmp_path, films[:2], ["0", "1"], facts))
    assert table["condition"].tolist() == table["label"].tolist() == ["0", "1"]


def test_different_dicom_films_are_different_instances(films, tmp_path):
    import pydicom

    def header(name, pixels, **changed):
        facts = dataclasses.replace(FACTS, **changed)
        path = data.write_synthetic(tmp_path / name, pixels[None], ["Mass"], facts, format="dicom")
        return pydicom.dcmread(data.read_manifest(path)["path"][0])

    one, same = header("one", films[0]), header("same", films[0])
    smaller, typical = header("smaller", films[0][::2, ::2]), header("typical", films[1], truncation=0.5)
    assert one.SOPInstanceUID == same.SOPInstanceUID
    assert len({film.SOPInstanceUID for film in (one, smaller, typical)}) == 3
    assert one.PatientID == smaller.PatientID != typical.PatientID


def test_a_dicom_film_takes_any_class_name(films, tmp_path):
    import pydicom

    label = "骨\\a^b=" + "c" * 80
    facts = SyntheticFacts("cdcgan", "ab", (label,), findings=False)
    path = data.write_synthetic(tmp_path, films[:1], [label], facts, format="dicom")
    film = data.read_manifest(path)["path"][0]
    header = pydicom.dcmread(film)
    assert str(header.PatientName).startswith("SYNTHETIC^骨 a b ") and len(str(header.PatientName)) <= 64
    assert header.SeriesDescription.startswith("SYNTHETIC 骨 a b c") and len(header.SeriesDescription) == 64
    assert kxray.read_image(film).facts["synthetic"] is True


def test_the_reader_and_the_mark_agree(written, films, tmp_path):
    dicom = data.write_synthetic(tmp_path / "dicom", films[:1], ["Mass"], FACTS, format="dicom")
    whole = Path(data.read_manifest(dicom)["path"][0]).read_bytes()
    (tmp_path / "bare.dcm").write_bytes(whole[132:])
    texts = PngInfo()
    texts.add_itxt("Synthetic", "yes")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "international.png", pnginfo=texts)
    for name in ("bare.dcm", "international.png"):
        assert kxray.read_image(tmp_path / name).facts["synthetic"] is True
        assert data.is_synthetic(tmp_path / name)


def test_a_synthetic_film_that_copies_a_held_out_one_is_named():
    table = with_synthetic(40, 1)
    real = splits.patient_split(table[:40], "label", seed=0)
    tested = table["patient_id"][:40][real.parts == "test"].iloc[0]
    groups = table["patient_id"].replace("synthetic-ab-00-0-000000", tested).to_numpy(str)
    with pytest.raises(splits.SplitError, match="/made/000.png: .*it copies a held-out film"):
        splits.patient_split(table, "label", seed=0, grouping=splits.Grouping(groups, "patient_id"))


def test_wrong_input_is_one_line(films, tmp_path):
    with pytest.raises(
        ValueError, match="unknown class 'Edema'; attention_cgan makes films of: Mass, Nodule, No"
    ):
        data.write_synthetic(tmp_path, films[:1], ["Edema"], FACTS)
    with pytest.raises(ValueError, match="unknown format 'bmp'; expected png or dicom"):
        data.write_synthetic(tmp_path, films[:1], ["Mass"], FACTS, format="bmp")
    with pytest.raises(ValueError, match="a film .* for each of 2 labels"):
        data.write_synthetic(tmp_path, films, ["Mass", "Mass"], FACTS)
    with pytest.raises(ValueError, match=r"expected float pixels in \[0, 1\]"):
        data.write_synthetic(tmp_path, films[:1] + 1, ["Mass"], FACTS)
