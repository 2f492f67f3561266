import json
import os
import subprocess
import sys

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from PIL import Image

from kxray.data import manifest

BOX = {"finding": "Mass", "x": 1.5, "y": 2, "width": 3, "height": 4}

# What a file name may hold on the systems we know; a line break in a name is nobody's film.
NAMES = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\\u2028\u2029\x85"),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", ".."))


def film(path, value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return str(path)


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_types_and_resolves_paths(tmp_path):
    film(tmp_path / "images" / "a b.png")
    film(tmp_path / "images" / "ü,1.png")
    csv = write(
        tmp_path / "manifest.csv",
        "path,patient_id,view,Mass,Nodule,boxes,age,code",
        'images/a b.png,007,frontal,1,,"{}",63,01'.format(json.dumps([BOX]).replace('"', '""')),
        '"images/ü,1.png",,lateral,0,0,,,02',
    )
    table = manifest.read_manifest(csv)
    assert list(table["path"]) == [str(tmp_path / "images" / "a b.png"), str(tmp_path / "images" / "ü,1.png")]
    assert list(table["patient_id"]) == ["007", ""]
    assert manifest.finding_columns(table) == ["Mass", "Nodule"]
    assert table["Mass"].tolist() == [1.0, 0.0]
    assert np.isnan(table["Nodule"][0]) and table["Nodule"][1] == 0
    assert table["boxes"].tolist() == [[BOX], []]
    assert table["age"][0] == 63 and np.isnan(table["age"][1])
    assert table["code"].tolist() == ["01", "02"]


def test_every_problem_is_listed_with_its_row(tmp_path):
    for name in "abcdefg":
        film(tmp_path / f"{name}.png")
    csv = write(
        tmp_path / "manifest.csv",
        "path,patient_id,view,Mass,boxes",
        "a.png,1,frontal,1,",
        "gone.png,1,frontal,0,",
        "",
        "b.png,1,sideways,0,",
        "a.png,1,frontal,1,",
        "c.png,1,,0,",
        "d.png,1,lateral,2,",
        ",1,lateral,0,",
        "e.png,1,lateral,1,{broken",
        'f.png,1,lateral,,"[{""finding"": ""Mass"", ""x"": 1, ""y"": 1, ""width"": 0, ""height"": 2}]"',
        "./g.png,2,lateral,,",
        "g.png,3,lateral,,",
    )
    table = manifest.read_manifest(csv, check=False)
    problems = manifest.check_manifest(table, views=["frontal", "lateral"])
    assert list(zip(problems["row"], problems["column"], strict=True)) == [
        (3, "path"),  # missing; row 4 is blank
        (5, "view"),  # unknown
        (6, "path"),  # the same film again
        (7, "view"),  # empty
        (8, "Mass"),
        (9, "path"),  # empty
        (10, "boxes"),
        (11, "boxes"),
        (12, "path"),  # two rows that contradict each other: both
        (13, "path"),
    ]
    text = dict(zip(problems["row"], problems["problem"], strict=True))
    assert "gone.png" in text[3] and "'sideways'; expected frontal or lateral" in text[5]
    assert "already in row 2" in text[6] and "got '2'" in text[8]

    with pytest.raises(manifest.ManifestError) as caught:
        manifest.read_manifest(csv)
    assert str(caught.value).startswith(f"8 problems in {csv}:\n  row 3: no such file")
    assert len(caught.value.problems) == 8

    good = manifest.drop_problems(table, problems)
    assert [os.path.basename(path) for path in good["path"]] == ["a.png"]
    assert good["Mass"].dtype == np.float64
    assert not len(manifest.check_manifest(good))
    manifest.write_skipped(problems, tmp_path / "skipped.csv")
    assert pd.read_csv(tmp_path / "skipped.csv")["row"].tolist() == problems["row"].tolist()


def test_rows_keep_their_number_in_a_filtered_table(tmp_path):
    table = pd.DataFrame({"path": [film(tmp_path / "a.png"), "/gone/b.png"], "patient_id": [1, 2]})
    assert manifest.check_manifest(table.iloc[1:])["row"].tolist() == [3]
    stacked = pd.concat([table, table.assign(path=["/gone/c.png", "/gone/d.png"])])
    assert manifest.check_manifest(stacked)["row"].tolist() == [3, 4, 5]


def test_long_lists_are_capped(tmp_path):
    table = pd.DataFrame({"path": [f"/gone/{i}.png" for i in range(30)], "patient_id": ""})
    error = manifest.ManifestError(manifest.check_manifest(table))
    assert str(error).startswith("30 problems")
    assert str(error).endswith("... and 10 more")
    assert len(str(error).splitlines()) == 22


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a header"),
        (b"file,patient\na,1\n", "expected a column 'path', got file, patient"),
        (b"path;patient_id\na;1\n", "commas, not semicolons"),
        (b"path,patient_id\na,1,2\nb,1\nc,1,3\n", "in rows 2, 4"),
        (b"path,patient_id\n\xff\xfe,1\n", "UTF-8"),
        (b"path,path\na,b\n", "distinct column names"),
        (b'path,patient_id\n"a,1\n', "not a readable CSV"),
    ],
)
def test_what_is_no_table_of_films_says_so(tmp_path, content, said):
    csv = tmp_path / "manifest.csv"
    csv.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        manifest.read_manifest(csv)
    assert str(csv) in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        manifest.read_manifest(tmp_path / "none.csv")


def test_spreadsheet_habits_are_read(tmp_path):
    film(tmp_path / "a.png")
    csv = tmp_path / "manifest.csv"
    csv.write_bytes("\ufeffpath,patient_id,Mass,,\r\na.png,1,1.0,,\r\n,,,,\r\n".encode())
    table = manifest.read_manifest(csv)
    assert table["Mass"].tolist() == [1.0]
    assert table["patient_id"].tolist() == ["1"]


def test_whole_number_patients_with_a_gap_stay_whole(tmp_path):
    table = pd.DataFrame({"path": ["a", "b"], "patient_id": [12.0, np.nan]})
    assert manifest.as_manifest(table)["patient_id"].tolist() == ["12", ""]


def test_measured_quantities_and_flags_are_no_findings(tmp_path):
    csv = write(
        tmp_path / "m.csv", "path,patient_id,tilt,scale,Mass", "a,1,0.00,1,1", "b,1,0.00,1,0", "c,1,0.5,1,"
    )
    table = manifest.read_manifest(csv, check=False)
    assert manifest.finding_columns(table) == ["Mass"]
    flagged = manifest.drop_problems(table.assign(extra=False), manifest.check_manifest(table).iloc[:1])
    assert flagged["extra"].dtype == bool and flagged["tilt"].tolist() == [0.0, 0.5]
    assert manifest.finding_columns(flagged) == ["Mass"]


def test_named_finding_columns_are_checked_even_if_mostly_wrong(tmp_path):
    table = pd.DataFrame(
        {"path": [film(tmp_path / "a.png"), film(tmp_path / "b.png")], "Mass": ["yes", "no"]}
    )
    assert not len(manifest.check_manifest(table))
    assert manifest.check_manifest(table, findings=["Mass"])["row"].tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"expected finding columns \['Nodule'\]"):
        manifest.check_manifest(table, findings=["Nodule"])
    with pytest.raises(ValueError, match="expected a column 'label'"):
        manifest.check_manifest(table, labels=["a", "b"])


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(data=st.data())
def test_write_then_read_gives_the_table_back(tmp_path_factory, data):
    names = data.draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    folder = tmp_path_factory.mktemp("round trip, ünicode")
    count = len(names)

    def column(values):
        return data.draw(st.lists(values, min_size=count, max_size=count))

    number = st.integers(-500, 500) | st.floats(-1e4, 1e4, allow_nan=False)
    size = st.floats(0.25, 1e4)
    box = st.fixed_dictionaries({"finding": NAMES, "x": number, "y": number, "width": size, "height": size})
    table = manifest.as_manifest(
        pd.DataFrame(
            {
                "path": [str(folder / "films" / name) for name in names],
                "patient_id": column(st.just("") | NAMES),
                "label": column(st.just("") | NAMES),
                "Mass": column(st.sampled_from([0.0, 1.0, np.nan])),
                "boxes": column(st.lists(box, max_size=2)),
                "age": column(st.integers(0, 99)),
            }
        )
    )
    manifest.write_manifest(table, folder / "tables" / "manifest.csv")
    again = manifest.read_manifest(folder / "tables" / "manifest.csv", check=False)
    pd.testing.assert_frame_equal(again, table)
    assert [entry.name for entry in (folder / "tables").iterdir()] == ["manifest.csv"]


def test_paths_on_disk_are_relative_so_that_folders_move(tmp_path):
    film(tmp_path / "here" / "films" / "a.png")
    table = pd.DataFrame({"path": [str(tmp_path / "here" / "films" / "a.png")], "patient_id": ["1"]})
    table["boxes"] = [[BOX]]
    manifest.write_manifest(table, tmp_path / "here" / "manifest.csv")
    row = pd.read_csv(tmp_path / "here" / "manifest.csv").iloc[0]
    assert row["path"] == "films/a.png"
    assert json.loads(row["boxes"]) == [BOX]
    (tmp_path / "here").rename(tmp_path / "there")
    moved = manifest.read_manifest(tmp_path / "there" / "manifest.csv")
    assert moved["path"].tolist() == [str(tmp_path / "there" / "films" / "a.png")]


def test_unreadable_films_are_listed_with_rows(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (tmp_path / "text.png").write_text("hello")
    csv = write(
        tmp_path / "manifest.csv",
        "path,patient_id",
        f"{film(tmp_path / 'a.png')},1",
        "bad.png,2",
        "gone.png,3",
        "text.png,4",
    )
    problems = manifest.check_films(manifest.read_manifest(csv, check=False))
    assert problems["row"].tolist() == [3, 5]
    assert all(problem.startswith("unreadable film: ") for problem in problems["problem"])


def test_importing_the_room_is_light():
    code = (
        "import sys, kxray.data; from kxray.data import read_source, patient_folds, fingerprint;"
        "assert not {'tensorflow', 'keras'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real_data
def test_views(real_data):
    table = manifest.read_manifest(real_data / "views" / "manifest.csv")
    assert len(table) == 391 and table["patient_id"].nunique() == 217
    assert table["view"].value_counts().to_dict() == {"frontal": 355, "lateral": 36}
    assert manifest.finding_columns(table) == []
    assert not len(manifest.check_manifest(table, views=["frontal", "lateral"]))


def test_masks_are_found_from_anywhere_and_written_relative(tmp_path):
    films, out = tmp_path / "films", tmp_path / "work" / "deep"
    for folder in (films / "masks", out):
        folder.mkdir(parents=True)
    (films / "1.png").touch()
    (films / "manifest.csv").write_text('path,label,masks\n1.png,bone,"{""bone"": ""masks/1.png""}"\n')
    table = manifest.read_manifest(films / "manifest.csv")
    assert json.loads(table["masks"][0]) == {"bone": str(films / "masks" / "1.png")}
    manifest.write_manifest(table, out / "manifest.csv")
    assert "../../films/masks/1.png" in (out / "manifest.csv").read_text()
    assert manifest.read_manifest(out / "manifest.csv")["masks"][0] == table["masks"][0]


def test_coarse_labels_stay_text(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "2.png").touch()
    rows = "path,label,coarse_label,size_px\n1.png,1_scale1,1,1\n2.png,0,0,\n"
    (tmp_path / "manifest.csv").write_text(rows)
    table = manifest.read_manifest(tmp_path / "manifest.csv")
    assert table["coarse_label"].tolist() == ["1", "0"] and table["label"].tolist() == ["1_scale1", "0"]
    assert not manifest.finding_columns(table)
