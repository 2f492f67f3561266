"""Many films at once: order, bounds, bad films, crashes, and nothing left behind."""

import functools
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from kxray.io import Film, FilmError, choose_dicom_reader, encode_png16, read_films
from kxray.io.parallel import _many_dicom

MODES = pytest.mark.parametrize("mode", ["threads", "processes"])


def dicom_bytes(value):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 4, 5, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = np.full((4, 5), value, np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Films 0..19 of brightness index / 4095, in DICOM and in PNG by turns; 3 is damaged and 7 missing."""
    for index in range(20):
        pixels = np.full((4, 5), index / 4095, np.float32)
        data = encode_png16(pixels) if index % 2 else dicom_bytes(index)
        (tmp_path / f"{index:02}.film").write_bytes(data[:-20] if index == 3 else data)
    (tmp_path / "07.film").unlink()
    return [tmp_path / f"{index:02}.film" for index in range(20)]


def check(results, paths):
    results = list(results)
    assert [index for index, _ in results] == list(range(len(paths)))
    for index, film in results:
        if index in (3, 7):
            assert isinstance(film, FilmError) and str(film).startswith(f"{paths[index]}: ")
        else:
            np.testing.assert_allclose(film.pixels, index / 4095, atol=1e-5)
            assert film.bits in (12, 16)


@MODES
@pytest.mark.parametrize("workers", [1, 3])
def test_films_come_in_order_and_bad_ones_as_errors(folder, mode, workers):
    check(read_films(folder, mode=mode, workers=workers), folder)
    assert threading.active_count() < 10


def test_auto_mode_uses_processes_for_many_dicom_films_only(folder):
    assert _many_dicom(folder[:10]) and not _many_dicom(folder[1::2]) and not _many_dicom(folder[:4])
    check(read_films(folder), folder)
    assert list(read_films([])) == []


@MODES
def test_bytes_and_generators_are_read_only_as_far_as_needed(mode):
    data, asked = dicom_bytes(9), []

    def endless():
        while True:
            asked.append(1)
            yield data

    stream = read_films(endless(), mode=mode, workers=2)
    for _ in range(5):
        _, film = next(stream)
        assert isinstance(film, Film)
    assert len(asked) <= 16 + 5 + 4
    stream.close()


def corner(film, size):
    return film.pixels[:size, :size].copy()


@MODES
def test_transforms(folder, mode):
    # This module cannot be imported by name from a worker; numpy can.
    results = dict(read_films(folder, mode=mode, workers=2, transform=functools.partial(corner, size=2)))
    assert results[4].shape == (2, 2) and isinstance(results[3], FilmError)
    results = dict(read_films(folder, mode=mode, workers=2, transform=lambda film: film.bits))
    assert results[4] == 12 and results[5] == 16 and isinstance(results[7], FilmError)


def test_a_transform_runs_in_the_worker_where_it_can_be_imported(folder, tmp_path, monkeypatch):
    (tmp_path / "where_it_runs.py").write_text("import os\n\ndef process(film):\n    return os.getpid()\n")
    monkeypatch.syspath_prepend(tmp_path)
    from where_it_runs import process

    results = dict(read_films(folder, mode="processes", workers=2, transform=process))
    pids = {value for value in results.values() if not isinstance(value, FilmError)}
    assert os.getpid() not in pids and 1 <= len(pids) <= 2
    for pid in pids:
        assert not _running(pid)


@MODES
def test_what_a_transform_raises_is_raised(folder, mode):
    def wrong(film):
        raise KeyError("a mistake of the caller's")

    with pytest.raises(KeyError, match="mistake"):
        list(read_films(folder, mode=mode, workers=2, transform=wrong))


def test_a_decoder_crash_costs_one_film(folder, tmp_path, monkeypatch):
    source = """
        import os, signal
        def crash_on_four(film):
            if abs(float(film.pixels[0, 0]) - 4 / 4095) < 1e-6:
                os.kill(os.getpid(), signal.SIGSEGV)
            return film
    """
    (tmp_path / "crashing.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    from crashing import crash_on_four

    results = dict(read_films(folder, mode="processes", workers=2, transform=crash_on_four))
    problem = f"decoding it ended its worker process (signal {int(signal.SIGSEGV)})"
    assert str(results[4]) == f"{folder[4]}: {problem}; the file is damaged"
    assert sum(isinstance(result, FilmError) for result in results.values()) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "fibres"}, "mode must be one of auto, threads, processes, got 'fibres'"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"dicom_reader": "dcmtk"}, "dicom_reader must be one of auto, pydicom, tensorflow-io, got 'dcmtk'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_films([], **options)


def test_a_missing_tensorflow_io_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setattr("kxray.io.readers.why_no_tensorflow_io", lambda: "it is not installed")
    assert choose_dicom_reader("auto", []) == choose_dicom_reader("pydicom", ["a.dcm"]) == "pydicom"
    with pytest.raises(ValueError) as caught:
        choose_dicom_reader("tensorflow-io", [])
    assert str(caught.value) == (
        "dicom_reader 'tensorflow-io' was asked for, but it is not installed; "
        "pip install -e '.[tensorflow-io]' in a clone of kxray"
    )


def _running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _all_children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, how):
    big = tmp_path / "film.png"
    Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(big)
    program = f"""
        import signal
        from kxray.io import read_films
        # A shell ignores it in what it starts in the background, and so would this process.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def forever():
            while True:
                yield {str(big)!r}
        for index, film in read_films(forever(), mode="processes", workers=2):
            print(index, flush=True)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    for _ in range(4):
        assert parent.stdout.readline().strip()
    children = _all_children(parent.pid)
    assert len(children) == 2
    parent.send_signal(how)
    parent.wait(timeout=120)
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_running(child) for child in children)


def test_leaving_early_ends_the_workers(folder):
    before = set(_all_children(os.getpid()))
    for index, _ in read_films(folder * 20, mode="processes", workers=2):
        if index == 3:
            break
    del index
    time.sleep(0.1)
    assert set(_all_children(os.getpid())) <= before


def test_workers_import_neither_tensorflow_nor_keras(tmp_path, monkeypatch):
    source = """
        import sys
        def modules(film):
            return sorted({"tensorflow", "keras"} & set(sys.modules))
    """
    (tmp_path / "list_modules.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    from list_modules import modules

    results = list(read_films([dicom_bytes(1)] * 3, mode="processes", workers=1, transform=modules))
    assert [found for _, found in results] == [[], [], []]
