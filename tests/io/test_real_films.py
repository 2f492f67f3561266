"""The real radiographs of KXRAY_TEST_DATA: what happens to each file, and what must be equal."""

import numpy as np
import pytest

from kxray.io import FilmError, read_films, read_image

pytestmark = pytest.mark.real_data

# name: (bits, polarity, kind of window), or the beginning of the refusal after "NAME: ".
EXPECTED = {
    "RG2_J2KI.dcm": (10, "as stored", "window"),
    "RG2_J2KR.dcm": (10, "as stored", "window"),
    "RG2_JLSL.dcm": (10, "as stored", "window"),
    "RG2_JPLL.dcm": (10, "as stored", "window"),
    # Its scan header is illegal: no decoder without pylibjpeg-libjpeg (GPLv3), which calls it damaged.
    "RG2_JPLY.dcm": ("no installed decoder reads JPEG Extended", "JPEG Extended (Process 2 and 4): damaged"),
    "RG2_RLE.dcm": (10, "as stored", "window"),
    "RG2_UNC.dcm": (10, "as stored", "window"),
    "XA1_J2KR.dcm": (10, "as stored", "full range"),
    "XA1_JLSL.dcm": (10, "as stored", "full range"),
    "XA1_JPLL.dcm": (10, "as stored", "full range"),
    "XA1_RLE.dcm": (10, "as stored", "full range"),
    "XA1_UNC.dcm": (10, "as stored", "full range"),
    "fo_CR-MONO1-10-chest.dcm": (10, "inverted", "window"),
    "fo_CR-ModalitySequenceLUT.dcm": (10, "inverted", "full range"),
    "fo_OutOfBoundsOverlay.dcm": (12, "as stored", "window"),
    "pl_966.dcm": ("JPEG 2000 Image Compression (Lossless Only): damaged pixel data",),
    "pl_966_fixed.dcm": (12, "inverted", "window"),
    "pl_NM_Kakadu44_CR_hand.dcm": (12, "as stored", "window"),
}


@pytest.fixture(scope="module")
def dicom_folder(real_data):
    folder = real_data / "dicom"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.mark.parametrize("name", EXPECTED)
def test_every_film_is_read_or_refused(dicom_folder, name):
    expected = EXPECTED[name]
    try:
        film = read_image(dicom_folder / name)
    except FilmError as error:
        assert isinstance(expected[0], str), error
        assert str(error).removeprefix(f"{dicom_folder / name}: ").startswith(expected)
        return
    assert (film.bits, film.facts["polarity"], film.facts["window"]["kind"]) == expected
    assert film.pixels.min() >= 0 and film.pixels.max() <= 1 and film.pixels.std() > 0.05


@pytest.mark.parametrize("stem", ["RG2", "XA1"])
def test_one_film_in_five_transfer_syntaxes_is_one_film(dicom_folder, stem):
    first = read_image(dicom_folder / f"{stem}_UNC.dcm")
    syntaxes = {first.facts["transfer_syntax"]}
    for syntax in ("J2KR", "JPLL", "JLSL", "RLE"):
        film = read_image(dicom_folder / f"{stem}_{syntax}.dcm")
        np.testing.assert_array_equal(film.pixels, first.pixels)
        syntaxes.add(film.facts["transfer_syntax"])
    assert len(syntaxes) == 5


def test_lossy_jpeg_2000_is_close(dicom_folder):
    lossy, exact = (read_image(dicom_folder / f"RG2_{syntax}.dcm").pixels for syntax in ("J2KI", "UNC"))
    assert np.abs(lossy - exact).mean() < 0.002


def test_worker_processes_give_the_same_pixels(dicom_folder):
    paths = sorted(dicom_folder.glob("XA1_*.dcm"))
    expected = read_image(paths[0]).pixels
    results = list(read_films(paths * 2, workers=2, mode="processes"))
    assert [index for index, _ in results] == list(range(2 * len(paths)))
    for _, film in results:
        np.testing.assert_array_equal(film.pixels, expected)


def test_chest_films_in_png(real_data):
    paths = sorted((real_data / "views").rglob("*.png"))[:40]
    if not paths:
        pytest.skip("no films in views/")
    for _, film in read_films(paths, workers=2):
        assert film.bits == 8 and film.pixels.max() > 0.5
