"""An archive of any mix of files, sorted: every file one row, whatever happens in between."""

import csv
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

import kxray
from kxray.io import encode_png16
from training.sort import find_files, link_films, predict_rows
from training.sorted_table import COLUMNS, read_rows

GOOD = ("a/eight.png", "a/sixteen.png", "b/film.jpg", "b/film.tif", "b/deep/film.dcm", "no-ending")
BAD = {"a/notes.txt": "it is text", "b/empty.png": "it is empty", "b/garbage.dcm": "not an image"}


def dicom_bytes(pixels):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelRepresentation, dataset.BitsAllocated = 0, 16
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.PixelData = np.round(pixels * 4095).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Six films in six formats and three files that are none."""
    folder = tmp_path / "archive"
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / "a").mkdir()
    films = np.random.default_rng(0).random((6, 80, 70)).astype("float32")
    eight = [Image.fromarray(np.round(film * 255).astype("uint8")) for film in films]
    eight[0].save(folder / "a" / "eight.png")
    (folder / "a" / "sixteen.png").write_bytes(encode_png16(films[1]))
    eight[2].save(folder / "b" / "film.jpg")
    tifffile.imwrite(folder / "b" / "film.tif", np.round(films[3] * 65535).astype("uint16"))
    (folder / "b" / "deep" / "film.dcm").write_bytes(dicom_bytes(films[4]))
    (folder / "no-ending").write_bytes(encode_png16(films[5]))
    (folder / "a" / "notes.txt").write_text("thursday\n")
    (folder / "b" / "empty.png").write_bytes(b"")
    (folder / "b" / "garbage.dcm").write_bytes(bytes(range(256)))
    (folder / ".hidden.png").write_bytes(encode_png16(films[0]))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run folder with an untrained model whose answers are spread around one half."""
    import keras

    keras.utils.set_random_seed(1)
    network = kxray.models.build("view_cnn")
    kernel, bias = network.get_layer("dense_2").get_weights()
    network.get_layer("dense_2").set_weights([kernel * 40, bias])
    spec = kxray.ModelSpec(
        "view_cnn", ("frontal", "lateral"), "binary", (64, 64), temperature=1.5,
        thresholds={"frontal": 0.7, "lateral": 0.7},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "run"
    folder.mkdir()
    network.save(folder / "model.keras")
    (folder / "spec.json").write_text(spec.to_json())
    return folder


@pytest.fixture
def sorted_table(sort, archive, model, tmp_path):
    out = tmp_path / "out" / "sorted.csv"
    told = sort("--model", model, "--input", archive, "--out", out)
    assert told.code == 0, told.text
    return out


def names(rows):
    return [row[0].removeprefix("../archive/") for row in rows]


def test_every_file_is_one_row(sorted_table, model):
    rows = read_rows(sorted_table)
    assert sorted(names(rows)) == sorted([*GOOD, *BAD])
    spec = kxray.ModelSpec.read(model / "spec.json")
    for name, (_, view, probability, decision, reason) in zip(names(rows), rows, strict=True):
        if name in BAD:
            assert (view, probability, decision) == ("", "", "") and BAD[name] in reason
        else:
            assert view in spec.labels and 0.5 <= float(probability) <= 1 and reason == ""
            assert decision == (view if float(probability) >= 0.7 else "unsure")
    assert sorted_table.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert not list(sorted_table.parent.glob("*.part"))


def test_the_numbers_are_those_of_the_model(sorted_table, archive, model):
    from kxray.layers import film_input

    network, spec = kxray.load(model)
    for row in read_rows(sorted_table):
        if row[1]:
            pixels = kxray.read_image(sorted_table.parent / row[0]).pixels
            lateral = float(network(film_input(spec)(pixels[None, :, :, None]))[0, 0])
            calibrated = 1 / (1 + (1 / lateral - 1) ** (1 / spec.temperature))
            expected = calibrated if row[1] == "lateral" else 1 - calibrated
            assert float(row[2]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_run_and_saved_model_give_equal_probabilities(archive, model, tmp_path):
    from serving.export import export
    from training.predictor import Predictor

    exported = export(model, tmp_path / "served" / "view")
    paths = find_files(archive)
    answers = [list(predict_rows(Predictor(path), paths)) for path in (model, exported, exported.parent)]
    for one, other, newest in zip(*(sum(batches, []) for batches in answers), strict=True):
        assert one[0] == other[0] and one[1] == other[1] and one[3:] == other[3:]
        assert other == newest, "a folder of versions is its newest version"
        if one[2]:
            assert float(one[2]) == pytest.approx(float(other[2]), abs=1e-5)
    assert len(Predictor(exported).digest) == 64


def test_a_table_cut_anywhere_in_its_last_row_is_completed(sort, archive, model, sorted_table):
    whole = sorted_table.read_bytes()
    part = sorted_table.with_name("sorted.csv.part")
    last = whole[:-1].rfind(b"\n") + 1
    from training.predictor import Predictor
    from training.sorted_table import SortedTable

    predictor = Predictor(model)
    expected = read_rows(sorted_table)
    for cut in range(last, len(whole) + 1):
        part.write_bytes(whole[:cut])
        sorted_table.unlink(missing_ok=True)
        table = SortedTable(sorted_table, predictor)
        missing = [path for path in find_files(archive) if path not in table]
        assert len(missing) == (cut < len(whole)), cut
        with table:
            table.append([(path, *expected[-1][1:]) for path in missing])
        table.finish()
        assert sorted_table.read_bytes() == whole and not part.exists()


def test_a_killed_run_goes_on_where_it_was(sort, archive, model, sorted_table, monkeypatch):
    whole = sorted(read_rows(sorted_table))
    lines = sorted_table.read_bytes().splitlines(keepends=True)
    sorted_table.unlink()
    sorted_table.with_name("sorted.csv.part").write_bytes(b"".join(lines[:5]) + lines[5][:7])
    read = []
    real = predict_rows
    monkeypatch.setattr(
        "training.sort.predict_rows",
        lambda predictor, paths, **options: read.extend(paths) or real(predictor, paths, **options),
    )
    told = sort("--model", model, "--input", archive, "--out", sorted_table)
    assert told.code == 0 and sorted(read_rows(sorted_table)) == whole
    assert len(read) == len(whole) - 4


def test_a_rerun_adds_new_films_only(sort, archive, model, sorted_table):
    before = read_rows(sorted_table)
    shutil.copy(archive / "a" / "eight.png", archive / "a" / "new.png")
    told = sort("--model", model, "--input", archive, "--out", sorted_table)
    rows = read_rows(sorted_table)
    (new,) = set(rows) - set(before)
    assert told.code == 0 and len(rows) == len(before) + 1 and names([new]) == ["a/new.png"]
    assert sort("--model", model, "--input", archive, "--out", sorted_table).code == 0
    assert sorted(read_rows(sorted_table)) == sorted(rows)


def test_a_film_that_was_mended_is_read_at_the_next_run(sort, archive, model, sorted_table):
    broken = next(row[0] for row in read_rows(sorted_table) if not row[3])
    shutil.copy(archive / "a" / "eight.png", sorted_table.parent / broken)
    assert sort("--model", model, "--input", archive, "--out", sorted_table).code == 0
    rows = read_rows(sorted_table)
    assert next(row[3] for row in rows if row[0] == broken)
    assert len({row[0] for row in rows}) == len(rows)


def test_names_with_line_ends_and_links_of_its_own_making(sort, archive, model, tmp_path):
    shutil.copy(archive / "a" / "eight.png", archive / "a\rb.png")
    shutil.copy(archive / "a" / "eight.png", archive / "a\nb.png")
    out, links = tmp_path / "names.csv", archive / "links"
    told = sort("--model", model, "--input", archive, "--out", out, "--link-into", links)
    rows = read_rows(out)
    # The links lie below the input: without --link-into they are still not films of their own.
    assert told.code == 0 and sort("--model", model, "--input", archive, "--out", out).code == 0
    assert sorted(read_rows(out)) == sorted(rows) and len({row[0] for row in rows}) == len(rows)


def test_films_of_two_archives_with_one_name_are_both_linked(tmp_path):
    from training.sorted_table import write_rows

    for archive in ("one", "two"):
        (tmp_path / archive).mkdir()
        (tmp_path / archive / "1.png").write_bytes(b"film")
        write_rows(tmp_path / f"{archive}.csv", [(f"{archive}/1.png", "frontal", "0.99", "frontal", "")])
        assert link_films(tmp_path / f"{archive}.csv", tmp_path / "links") == 1
    linked = {path.resolve().parent.name for path in (tmp_path / "links" / "frontal").iterdir()}
    assert linked == {"one", "two"}
    assert link_films(tmp_path / "one.csv", tmp_path / "links") == 1
    assert len(list((tmp_path / "links" / "frontal").iterdir())) == 2


def test_another_model_is_refused(sort, archive, model, sorted_table, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    spec = (other / "spec.json").read_text().replace('"temperature": 1.5', '"temperature": 2.5')
    (other / "spec.json").write_text(spec)
    before = sorted_table.read_bytes()
    told = sort("--model", other, "--input", archive, "--out", sorted_table)
    assert told.code == 2 and "was begun with another model; choose another --out" in told.text
    assert sorted_table.read_bytes() == before


def test_its_own_files_are_not_sorted(sort, archive, model):
    for _ in range(2):
        told = sort("--model", model, "--input", archive, "--out", archive / "sorted.csv")
        assert told.code == 0, told.text
    assert sorted(row[0] for row in read_rows(archive / "sorted.csv")) == sorted([*GOOD, *BAD])


def test_names_from_anywhere(sort, model, tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    film = encode_png16(np.random.default_rng(0).random((70, 70)).astype("float32"))
    for name in (b'a "b", c.png', b"two\nlines.png", "Röntgen 胸.png".encode(), b"latin-\xe9.png"):
        (Path(os.fsdecode(bytes(folder) + b"/" + name))).write_bytes(film)
    out = tmp_path / "sorted.csv"
    for _ in range(2):
        told = sort("--model", model, "--input", folder, "--out", out)
        assert told.code == 0, told.text
    rows = read_rows(out)
    assert len(rows) == 4 and all(row[1] for row in rows)
    assert {os.path.basename(row[0]) for row in rows} == set(os.listdir(folder))
    page = (tmp_path / "sorted.review.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 4


def links_of(folder):
    return {
        link.relative_to(folder).as_posix(): os.readlink(link)
        for link in folder.rglob("*")
        if link.is_symlink()
    }


def test_links_follow_the_decisions(sort, archive, model, sorted_table, tmp_path):
    folder = archive / "links"  # below the films: it must not be sorted itself
    arguments = ("--model", model, "--input", archive, "--out", sorted_table, "--link-into", folder)
    told = sort(*arguments)
    links = links_of(folder)
    decided = {row[0]: row[3] for row in read_rows(sorted_table) if row[3]}
    assert told.code == 0 and "6 films linked" in told.text and len(links) == 6
    for link, target in links.items():
        assert decided[os.path.relpath(target, sorted_table.parent)] == link.split("/")[0]
        assert kxray.read_image(folder / link)
    assert sort(*arguments).code == 0 and links_of(folder) == links
    assert len(read_rows(sorted_table)) == 9


def test_links_move_with_a_corrected_decision_and_same_names_are_numbered(tmp_path):
    out = tmp_path / "sorted.csv"
    lines = [
        "path,view,probability,decision,reason",
        "a/x.png,frontal,0.9,frontal,",
        "b/x.png,frontal,0.9,frontal,",
    ]
    out.write_text("\n".join(lines) + "\n")
    assert link_films(out, tmp_path / "links") == 2
    assert sorted(links_of(tmp_path / "links")) == ["frontal/x-2.png", "frontal/x.png"]
    out.write_text("\n".join([*lines[:2], "b/x.png,frontal,0.9,lateral,"]) + "\n")
    link_films(out, tmp_path / "links")
    assert links_of(tmp_path / "links") == {
        "frontal/x.png": str(tmp_path / "a" / "x.png"), "lateral/x.png": str(tmp_path / "b" / "x.png"),
    }  # fmt: skip


class Review(HTMLParser):
    """What a person sees and what the page's script works with."""

    def __init__(self, text):
        super().__init__()
        self.films, self.pictures, self.choices = [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "figure":
            self.films.append((attributes["data-path"], attributes["data-view"]))
        elif tag == "img":
            assert attributes["src"].startswith("data:image/jpeg;base64,")
            self.pictures += 1
        elif tag == "input":
            self.choices.append(attributes["value"])


def test_the_review_page_shows_the_least_certain_first(sort, archive, model, sorted_table):
    told = sort("--model", model, "--input", archive, "--out", sorted_table, "--review", 4)
    path = sorted_table.with_name("sorted.review.html")
    assert told.code == 0 and str(path) in told.text
    page = Review(path.read_text(encoding="utf-8"))
    rows = sorted((row for row in read_rows(sorted_table) if row[1]), key=lambda row: float(row[2]))
    assert [os.path.basename(film) for film, _ in page.films] == [
        os.path.basename(row[0]) for row in rows[:4]
    ]
    assert page.pictures == 4 and page.choices == ["frontal", "lateral"] * 4
    path.unlink()
    sort("--model", model, "--input", archive, "--out", sorted_table, "--review", 0)
    assert not path.exists()


def corrected_as_the_page_writes_it(page_path, views):
    """What the page's script saves: its header, and each cell in quotes."""
    page = page_path.read_text(encoding="utf-8")
    assert "const quote = text => '\"' + text.replaceAll('\"', '\"\"') + '\"';" in page
    header = re.search(r'new Blob\(\["(.*?)\\n" \+ rows\.join', page)[1]
    quote = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731
    films = [film for film, _ in Review(page).films]
    rows = [quote(film) + "," + quote(view) for film, view in zip(films, views, strict=False)]
    return header + "\n" + "\n".join(rows) + "\n"


def test_corrections_of_the_page_are_entered_and_are_a_source_of_films(sort, sorted_table, tmp_path):
    from training.films import read_labelled
    from training.recipes.view_classifier import Recipe, task_of

    corrected = tmp_path / "corrected.csv"
    page = sorted_table.with_name("sorted.review.html")
    corrected.write_text(corrected_as_the_page_writes_it(page, ["lateral", "lateral", "frontal"]))
    before = {row[0]: row for row in read_rows(sorted_table)}
    told = sort("--corrections", corrected, "--out", sorted_table)
    assert told.code == 0 and "3 corrected films entered" in told.text
    after = {row[0]: row for row in read_rows(sorted_table)}
    changed = {path: row for path, row in after.items() if row != before[path]}
    assert sorted(row[3] for row in changed.values()) == ["frontal", "lateral", "lateral"]
    assert {row[4] for row in changed.values()} == {"corrected by a person"} and list(after) == list(before)
    table, problems, _ = read_labelled(corrected, task_of(Recipe()), skip_bad=False)
    assert sorted(table["view"]) == ["frontal", "lateral", "lateral"] and not len(problems)
    assert sort("--corrections", corrected, "--out", sorted_table).code == 0
    assert {row[0]: row for row in read_rows(sorted_table)} == after


def test_corrections_that_do_not_fit_change_nothing(sort, archive, sorted_table, tmp_path):
    before = sorted_table.read_bytes()
    film = archive / "a" / "eight.png"
    stranger = shutil.copy(film, tmp_path / "stranger.png")
    for text, sentence in (
        (f"path,view\n{film},lateral\n{stranger},frontal\n", "1 films are not in .*stranger.png"),
        (f"path,view\n{film},latreal\n", "unknown view 'latreal'; expected frontal or lateral"),
        (f"path,label\n{film},lateral\n", "expected the columns path and view, got path"),
        (f"path,view\n{tmp_path}/gone.png,lateral\n", "no such file"),
    ):
        (tmp_path / "corrected.csv").write_text(text)
        told = sort("--corrections", tmp_path / "corrected.csv", "--out", sorted_table)
        assert told.code == 2 and re.search(sentence, told.text), told.text
        assert sorted_table.read_bytes() == before


def test_a_person_counts_films_that_were_corrected_not_empty_cells(sort, archive, sorted_table, tmp_path):
    (tmp_path / "corrected.csv").write_text(
        f"path,view\n{archive}/a/eight.png,lateral\n{archive}/a/sixteen.png,\n"
    )
    assert (
        "1 corrected films" in sort("--corrections", tmp_path / "corrected.csv", "--out", sorted_table).text
    )


def test_wrong_use_is_told(sort, archive, model, tmp_path):
    out = tmp_path / "sorted.csv"
    for arguments, sentence in (
        ((), "nothing to do: give --model and --input"),
        (("--input", archive), "--input needs --model"),
        (("--input", tmp_path / "absent", "--model", model), "no such folder of films"),
        (("--input", archive, "--model", tmp_path / "absent"), "no such model; expected a run folder"),
        (("--input", archive, "--model", archive), "trained model model.keras is missing"),
    ):
        told = sort(*arguments, "--out", out)
        assert told.code == 2 and sentence in told.text and told.text.count("\n") == 1
    out.write_text("something,else\n1,2\n")
    told = sort("--input", archive, "--model", model, "--out", out)
    assert told.code == 2 and "not a table of training.sort" in told.text
    assert out.read_text() == "something,else\n1,2\n"


def test_the_facts_beside_the_table(sorted_table, model):
    facts = json.loads(sorted_table.with_name("sorted.csv.json").read_text())
    assert facts["labels"] == ["frontal", "lateral"] and facts["model"] == str(model)
    table = pd.read_csv(sorted_table, keep_default_na=False)
    with sorted_table.open() as lines:
        assert list(table.columns) == list(COLUMNS) and len(list(csv.reader(lines))) == 10
