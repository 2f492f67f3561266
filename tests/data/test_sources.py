import gzip

import numpy as np
import pytest
from PIL import Image

from kxray.data import manifest, sources

NIH_HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def film(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Image.fromarray(np.full((height, width), 9, np.uint8)).save(path)


def names(table):
    return [path.rsplit("/", 1)[1] for path in table["path"]]


def write_nih(folder):
    film(folder / "images_001" / "images" / "00000001_000.png", (256, 256))
    film(folder / "images_002" / "images" / "00000002_000.png", (512, 256))
    film(folder / "images_002" / "images" / "00000002_001.png", (256, 256))
    (folder / "Data_Entry_2017_v2020.csv").write_text(
        f"{NIH_HEADER}\n"
        "00000001_000.png,Cardiomegaly|Effusion,0,1,058Y,M,PA,\n"
        "00000009_000.png,Mass,0,9,40,F,PA,\n"
        "00000002_000.png,No Finding,0,2,006M,F,AP,\n"
        "00000002_001.png,Infiltration,1,2,81,F,AP,\n"
    )
    (folder / "BBox_List_2017.csv").write_text(
        f"{BOX_HEADER}\n"
        "00000001_000.png,Cardiomegaly,100,200,40,80,,,\n"
        "00000009_000.png,Mass,1,2,3,4,,,\n"
        "00000002_001.png,Infiltrate,512,256,128,64,,,\n"
        "00000002_000.png,Mass,512,512,256,256,,,\n"
    )


def test_nih_findings_views_and_boxes_scaled_to_the_film_on_disk(tmp_path):
    write_nih(tmp_path)
    table = sources.read_source(tmp_path)
    assert names(table) == ["00000001_000.png", "00000002_000.png", "00000002_001.png"]
    assert table["patient_id"].tolist() == ["1", "2", "2"]
    assert manifest.finding_columns(table, sources.NIH_FINDINGS) == list(sources.NIH_FINDINGS)
    assert table["Cardiomegaly"].tolist() == [1, 0, 0] and table["Effusion"].tolist() == [1, 0, 0]
    assert table.loc[table.index[1], list(sources.NIH_FINDINGS)].sum() == 0
    assert table["view"].tolist() == ["frontal"] * 3 and table["position"].tolist() == ["PA", "AP", "AP"]
    assert table["age"].tolist() == [58, 0.5, 81] and table["sex"].tolist() == ["M", "F", "F"]
    # 256 of 1024 px: a quarter. The film of 512x256: half across, a quarter down.
    assert table["boxes"].tolist() == [
        [{"finding": "Cardiomegaly", "x": 25.0, "y": 50.0, "width": 10.0, "height": 20.0}],
        [{"finding": "Mass", "x": 256.0, "y": 128.0, "width": 128.0, "height": 64.0}],
        [{"finding": "Infiltration", "x": 128.0, "y": 64.0, "width": 32.0, "height": 16.0}],
    ]
    assert table.attrs["source"] == "NIH ChestX-ray14"
    assert table.attrs["notes"] == ["1 of 4 rows have no film in the folder and were left out"]
    # The film in row 3 of the CSV is missing; the others keep their rows.
    assert manifest.row_numbers(table) == [2, 4, 5]
    same = sources.read_source(tmp_path / "Data_Entry_2017_v2020.csv")
    assert same.equals(table)


def test_nih_split_lists_become_the_split(tmp_path):
    write_nih(tmp_path)
    (tmp_path / "train_val_list.txt").write_text("00000002_000.png\n00000002_001.png\n00000009_000.png\n")
    assert "split" not in sources.read_source(tmp_path).columns
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n")
    table = sources.read_source(tmp_path)
    assert table["split"].tolist() == ["test", "train", "train"]
    assert len(table.attrs["notes"]) == 1


def test_nih_split_lists_that_leave_films_out_or_say_two_things(tmp_path):
    write_nih(tmp_path)
    (tmp_path / "train_val_list.txt").write_text("00000002_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n")
    table = sources.read_source(tmp_path)
    assert table["split"].tolist() == ["test", "train", ""]
    assert "1 films are neither in" in table.attrs["notes"][-1]
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n00000002_000.png\n")
    with pytest.raises(ValueError, match="1 films are in both lists, such as 00000002_000.png"):
        sources.read_source(tmp_path)


def test_nih_without_films_says_where_they_belong(tmp_path):
    write_nih(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="lists 4 films, none of which"):
        sources.read_source(tmp_path)


def test_nih_box_that_is_no_box(tmp_path):
    write_nih(tmp_path)
    (tmp_path / "BBox_List_2017.csv").write_text(f"{BOX_HEADER}\n00000001_000.png,Mass,1,2,x,4,,,\n")
    with pytest.raises(ValueError, match="row 2: expected four numbers"):
        sources.read_source(tmp_path)


def test_mimic_names_views_splits_and_findings(tmp_path):
    root = tmp_path / "mimic"
    film(root / "files/p10/p10000032/s50414267/02aa804e.jpg")
    film(root / "files/p10/p10000032/s50414267/174413ec.jpg")
    film(root / "files/p11/p11000011/s51029426/abcd.jpg")
    with gzip.open(root / "mimic-cxr-2.0.0-metadata.csv.gz", "wt") as file:
        file.write("dicom_id,subject_id,study_id,ViewPosition\n02aa804e,10000032,50414267,PA\n")
        file.write("174413ec,10000032,50414267,LATERAL\n")
    (root / "mimic-cxr-2.0.0-split.csv").write_text(
        "dicom_id,study_id,subject_id,split\n02aa804e,,,train\n174413ec,,,train\nabcd,,,validate\n"
    )
    (root / "mimic-cxr-2.0.0-chexpert.csv").write_text(
        "subject_id,study_id,Edema,Lung Opacity\n10000032,50414267,1.0,-1.0\n11000011,51029426,0.0,\n"
    )
    table = sources.read_source(tmp_path)
    assert table["patient_id"].tolist() == ["10000032", "10000032", "11000011"]
    assert table["view"].tolist() == ["frontal", "lateral", ""]
    assert table["split"].tolist() == ["train", "train", "val"]
    assert table["Edema"].tolist() == [1, 1, 0]
    assert table["Lung_Opacity"].isna().all()


def test_mimic_without_metadata(tmp_path):
    film(tmp_path / "files/p10/p10000032/s50414267/02aa804e.png")
    table = sources.read_source(tmp_path)
    assert table["patient_id"].tolist() == ["10000032"]
    assert "views are unknown" in table.attrs["notes"][0]


def test_shenzhen_and_montgomery_names(tmp_path):
    film(tmp_path / "ChinaSet" / "CXR_png" / "CHNCXR_0001_0.png")
    film(tmp_path / "ChinaSet" / "CXR_png" / "CHNCXR_0327_1.png")
    film(tmp_path / "ChinaSet" / "mask" / "CHNCXR_0327_1_mask.png")
    film(tmp_path / "MontgomerySet" / "CXR_png" / "MCUCXR_0001_1.png")
    film(tmp_path / "MontgomerySet" / "ManualMask" / "leftMask" / "MCUCXR_0001_1.png")
    table = sources.read_source(tmp_path)
    assert names(table) == ["CHNCXR_0001_0.png", "CHNCXR_0327_1.png", "MCUCXR_0001_1.png"]
    assert table["label"].tolist() == ["normal", "tuberculosis", "tuberculosis"]
    assert table["patient_id"].tolist() == ["CHNCXR_0001", "CHNCXR_0327", "MCUCXR_0001"]
    assert set(table["view"]) == {"frontal"}


def test_class_folders_pass_over_what_is_no_film(tmp_path):
    root = tmp_path / "archive"
    film(root / "normal" / "a.png")
    film(root / "normal" / "deeper" / "patient12_b.JPG")
    film(root / "pneumonia" / "person7_virus_2.jpeg")
    film(root / "pneumonia" / "masks" / "a.png")
    film(root / ".cache" / "c.png")
    film(tmp_path / "__MACOSX" / "normal" / "a.png")
    (root / "normal" / "Thumbs.db").write_bytes(b"x")
    (root / "normal" / "._a.png").write_bytes(b"x")
    (root / "pneumonia" / "exported").write_bytes(b"\0" * 128 + b"DICM")
    (root / "pneumonia" / "LICENSE").write_text("text")
    (root / "empty").mkdir()
    film(root / "loose.png")
    table = sources.read_source(tmp_path)
    assert sorted(zip(names(table), table["label"], table["patient_id"], strict=True)) == [
        ("a.png", "normal", ""),
        ("exported", "pneumonia", ""),
        ("patient12_b.JPG", "normal", "patient12"),
        ("person7_virus_2.jpeg", "pneumonia", "person7"),
    ]
    assert "split" not in table.columns
    assert table.attrs["notes"] == ["1 films beside the class folders were left out"]


def test_class_folders_below_split_folders(tmp_path):
    for split in ("train", "validation", "Test"):
        for label in ("a", "b"):
            film(tmp_path / split / label / "x.png")
    table = sources.read_source(tmp_path)
    found = set(zip(table["split"], table["label"], strict=True))
    assert found == {(split, label) for split in ("train", "val", "test") for label in ("a", "b")}


def test_a_manifest_comes_first_and_its_problems_are_told(tmp_path):
    film(tmp_path / "a" / "x.png")
    film(tmp_path / "b" / "y.png")
    (tmp_path / "manifest.csv").write_text("path,patient_id,label\na/x.png,1,a\nb/gone.png,2,b\n")
    with pytest.raises(manifest.ManifestError, match="row 3: no such file"):
        sources.read_source(tmp_path)
    assert len(sources.read_source(tmp_path, check=False)) == 2
    (tmp_path / "good.csv").write_text("path,patient_id,label\na/x.png,1,a\n")
    assert names(sources.read_source(tmp_path / "good.csv")) == ["x.png"]


def test_folders_that_are_none_of_these_say_what_was_looked_for(tmp_path):
    for said in ("no films that say", "2 films in"):
        with pytest.raises(ValueError, match=said) as caught:
            sources.read_source(tmp_path)
        message = str(caught.value)
        assert str(tmp_path) in message and "\n" not in message
        for name in ("manifest.csv", "Data_Entry_2017", "MIMIC-CXR", "CHNCXR", "folder of films a class"):
            assert name in message
        film(tmp_path / "x.png")
        film(tmp_path / "y.png")
    with pytest.raises(ValueError, match="no such file or folder"):
        sources.read_source(tmp_path / "nowhere")


def test_a_folder_of_sources_is_not_taken_for_classes(tmp_path):
    film(tmp_path / "first" / "x.png")
    film(tmp_path / "second" / "x.png")
    (tmp_path / "second" / "manifest.csv").write_text("path\nx.png\n")
    with pytest.raises(ValueError, match=r"holds several sources \(second, ...\); name one of them"):
        sources.read_source(tmp_path)


def test_links_that_go_round_in_circles(tmp_path):
    film(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(sources.find_films(tmp_path)) == 1


@pytest.mark.real_data
def test_nih_on_real_films(real_data):
    table = sources.read_source(real_data / "nih")
    counts = {"Pneumonia": 355, "Infiltration": 128, "Atelectasis": 73, "Effusion": 64, "Nodule": 14}
    assert {name: int(table[name].sum()) for name in counts} == counts
    assert len(table) == 691 and table["patient_id"].nunique() == 478
    # Every film shows Pneumonia or nothing: 355 + 336 = 691.
    assert int((table[list(sources.NIH_FINDINGS)].sum(axis=1) == 0).sum()) == 336
    boxes = [box for row in table["boxes"] for box in row]
    assert len(boxes) == 33
    assert all(box["x"] + box["width"] <= 256 and box["y"] + box["height"] <= 256 for box in boxes)
    row = table[table["path"].str.endswith("00008365_000.png")].iloc[0]
    assert row["boxes"] == [
        {"finding": "Cardiomegaly", "x": 84.475, "y": 127.39, "width": 104.4075, "height": 100.8825}
    ]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "films", "labels"),
    [("fishbones", 160, {"bone": 80, "no_bone": 80}), ("tb", 600, {"normal": 300, "tuberculosis": 300})],
)
def test_class_folders_on_real_films(real_data, name, films, labels):
    table = sources.read_source(real_data / name)
    assert len(table) == films and table["label"].value_counts().to_dict() == labels
    assert set(table["patient_id"]) == {""}


@pytest.mark.real_data
def test_nih64_has_no_boxes(real_data):
    table = sources.read_source(real_data / "nih64")
    assert len(table) == 1000 and "boxes" not in table.columns
    assert int(table["Effusion"].sum()) == 170 and int(table["Pneumonia"].sum()) == 11
