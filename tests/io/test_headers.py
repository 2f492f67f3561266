"""What files say of films whose pixels are not decoded."""

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from kxray.io import FilmError, write_png16
from kxray.io.headers import film_problem, film_size


def test_sizes_come_from_headers_and_damage_is_named(tmp_path, monkeypatch):
    grey = np.random.default_rng(0).integers(0, 255, (40, 56), np.uint8)
    for name in ("film.png", "film.jpg", "film.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        assert film_problem(tmp_path / name) is None
    write_png16(tmp_path / "deep.png", grey / 255)
    assert film_problem(tmp_path / "deep.png") is None
    colour = np.stack([grey, grey, grey[::-1]], axis=-1)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    whole = {name: (tmp_path / name).read_bytes() for name in ("film.png", "film.jpg")}
    (tmp_path / "cut.png").write_bytes(whole["film.png"][:-30])
    (tmp_path / "cut.jpg").write_bytes(whole["film.jpg"][:-60])
    flipped = bytearray(whole["film.png"])
    flipped[len(flipped) // 2] ^= 255
    (tmp_path / "flipped.png").write_bytes(flipped)
    (tmp_path / "text.png").write_text("no film")
    for name in ("colour.png", "cut.png", "cut.jpg", "flipped.png", "text.png", "absent.png"):
        problem = film_problem(tmp_path / name)
        assert problem.startswith(str(tmp_path / name)) and "\n" not in problem
    assert "64 a side" in film_problem(tmp_path / "film.png", min_side=64)
    with pytest.raises(FilmError, match="no such file"):
        film_size(tmp_path / "absent.png")
    monkeypatch.setattr("kxray.io.read_image", None)
    for name in ("film.png", "film.jpg", "film.tif", "deep.png"):
        assert film_size(tmp_path / name) == (40, 56)


def test_the_size_of_a_dicom_film_comes_from_its_header(tmp_path, monkeypatch):
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID, film.SOPInstanceUID, film.Modality = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3", "DX"
    film.Rows, film.Columns, film.SamplesPerPixel, film.PhotometricInterpretation = 30, 20, 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.PixelData = bytes(2 * 30 * 20)
    film.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    monkeypatch.setattr("kxray.io.read_image", None)
    assert film_size(tmp_path / "film.dcm") == (30, 20)
    assert film_problem(tmp_path / "film.dcm") is None
