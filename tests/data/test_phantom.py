"""Phantom films: the physics by hand, truth that matches the picture, and the same films every time."""

import io
import json
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import ndimage

import kxray
from kxray.data.manifest import finding_columns, read_manifest
from kxray.data.phantom import FINDINGS, Mix, anatomy, fillet, thorax, write_phantoms
from kxray.data.phantom.exposure import transmission
from kxray.data.phantom.rays import Rays, ellipsoid, uncovered
from kxray.data.phantom.series import png

UPRIGHT = (0.0, 1.0, (0.0, 0.0))


def test_central_chord_of_an_ellipsoid_is_twice_its_semi_axis():
    body = ellipsoid((0, 0, 0), (30, 50, 70))
    for angle, expected in ((0, 100.0), (90, 60.0)):
        chord = Rays((65, 65), 2.0, angle).chord(body)
        assert chord[32, 32] == pytest.approx(expected, rel=1e-5)
        assert chord[32, 32] == chord.max()
    # Beer-Lambert, by hand: 100 mm of soft tissue let exp(-0.0217 * 100) = 0.1142 of the photons through.
    assert transmission(np.float32(anatomy.TISSUE * 100)) == pytest.approx(0.1142, abs=1e-4)


def test_chords_of_a_turned_ellipsoid_add_up_to_its_volume_at_any_angle():
    body = ellipsoid((10, -20, 5), (20, 30, 45), (20, -35, 60))
    for angle in (0, 33, 90):
        rays = Rays((128, 128), 1.5, angle, rotation=12, shift=(3, -4))
        volume = rays.chord(body).sum() * 1.5**2
        assert volume == pytest.approx(4 / 3 * np.pi * 20 * 30 * 45, rel=5e-3)


def test_overlapping_organs_are_counted_once():
    pair = [(np.float32([0, 0]), np.float32([4, 4])), (np.float32([2, 8]), np.float32([6, 12]))]
    assert uncovered((np.float32([0, 0]), np.float32([10, 10])), pair).tolist() == [4.0, 4.0]


def test_a_straight_tube_has_the_mass_of_a_cylinder():
    centres = np.stack([np.zeros(200), np.zeros(200), np.linspace(-40, 40, 200)], -1)[None]
    rays = Rays((96, 96), 1.5)
    path = rays.splat(rays.tubes(centres, (5.0, 5.0), 0.03, 0.03, 40, reference=(1, 0, 0)))
    # np.gradient counts each end point as a whole step.
    assert path.sum() * 1.5**2 == pytest.approx(0.03 * np.pi * 25 * 80, rel=0.02)
    assert path[30:66, 47:49].mean() == pytest.approx(0.03 * 10, rel=0.05)


@pytest.mark.parametrize("view", ["frontal", "lateral", 37.0])
def test_a_film_depends_on_seed_and_index_only(view):
    first = thorax(3, 11, view=view, size=96, findings=("Nodule", "Effusion"))
    thorax(3, 10, view=view, size=96)
    again = thorax(3, 11, view=view, size=96, findings=("Nodule", "Effusion"))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.boxes == again.boxes and first.facts == again.facts
    assert first.pixels.dtype == np.float32 and first.pixels.shape == (96, 96)
    assert 0 <= first.pixels.min() and first.pixels.max() <= 1 and first.pixels.std() > 0.05
    assert np.abs(first.pixels - thorax(4, 11, view=view, size=96).pixels).mean() > 0.01


def test_films_are_the_same_in_another_process():
    code = (
        "from kxray.data.phantom import thorax, fillet;"
        "print([float(thorax(5, 2, size=64).pixels.sum()), float(fillet(5, 2).pixels.sum())])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = [float(thorax(5, 2, size=64).pixels.sum()), float(fillet(5, 2).pixels.sum())]
    assert json.loads(there) == pytest.approx(here, rel=1e-5)


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_the_film_where_its_mask_says(finding):
    shares, noises = [], []
    for index in range(6):
        healthy = thorax(1, index, size=128, transform=UPRIGHT)
        ill = thorax(1, index, size=128, transform=UPRIGHT, findings=(finding,))
        mask = ill.masks[finding]
        assert mask.any() and ill.findings == (finding,)
        change = np.abs(ill.pixels - healthy.pixels)
        near = ndimage.binary_dilation(mask, iterations=3)
        shares.append(change[near].sum() / change.sum())
        noises.append(change[mask].mean() / (change[~near].mean() + 1e-6))
    assert np.median(shares) > 0.5, shares
    assert np.median(noises) > 4, noises


@pytest.mark.parametrize("finding", ["Nodule", "Mass"])
def test_nodules_stay_under_three_centimetres_and_masses_do_not(finding):
    for index in range(12):
        view = ("frontal", "lateral")[index % 2]
        film = thorax(2, index, size=256, transform=UPRIGHT, findings=(finding,), view=view)
        _, _, width, height = film.boxes[finding]
        longest = max(width, height) * film.facts["spacing"]
        stated = film.facts["lesions"][finding]["diameter_mm"]
        # The mask is counted in whole pixels: up to one pixel on each side.
        assert longest <= stated + 2 * film.facts["spacing"]
        assert stated < 30 if finding == "Nodule" else min(longest, stated) >= 30


def test_boxes_are_tight_around_masks():
    for index in range(8):
        film = thorax(6, index, size=128, findings=FINDINGS[index % 8 :][:2])
        for finding, (x, y, width, height) in film.boxes.items():
            mask = film.masks[finding]
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            for edge in (mask[y], mask[y + height - 1], mask[:, x], mask[:, x + width - 1]):
                assert edge.any()


def test_cardiomegaly_raises_the_heart_ratio_above_one_half():
    healthy = [thorax(7, index, size=64).facts["heart_ratio"] for index in range(30)]
    large = [
        thorax(7, index, size=64, findings=("Cardiomegaly",)).facts["heart_ratio"] for index in range(30)
    ]
    assert np.mean(healthy) < 0.5 < 0.56 < min(large)


def test_frontal_films_are_about_symmetric_and_lateral_films_are_not():
    def mirrored(view):
        scores = []
        for index in range(8):
            pixels = thorax(8, index, view=view, size=64, transform=UPRIGHT).pixels[8:56, 8:56]
            scores.append(np.corrcoef(pixels.ravel(), pixels[:, ::-1].ravel())[0, 1])
        return np.median(scores)

    assert mirrored(0.0) > 0.8
    assert mirrored(0.0) > mirrored(90.0) + 0.1


def test_lungs_are_darker_than_the_middle_of_the_chest():
    for index in range(8):
        pixels = thorax(9, index, view=0.0, size=128, transform=UPRIGHT).pixels
        middle = pixels[50:80, 60:68].mean()
        assert pixels[40:70, 25:45].mean() < middle and pixels[40:70, 85:105].mean() < middle


def test_the_stated_transform_is_the_one_applied():
    findings = ("Nodule",)
    plain = thorax(4, 2, size=256, view=0.0, findings=findings, transform=UPRIGHT)
    moved = thorax(4, 2, size=256, view=0.0, findings=findings, transform=(15.0, 1.2, (0.05, -0.04)))
    turn, middle = np.radians(15.0), 127.5
    y, x = ndimage.center_of_mass(plain.masks["Nodule"])
    right, up = x - middle, middle - y
    expected_x = middle + 1.2 * (np.cos(turn) * right - np.sin(turn) * up) + 0.05 * 256
    expected_y = middle - 1.2 * (np.sin(turn) * right + np.cos(turn) * up) - 0.04 * 256
    y, x = ndimage.center_of_mass(moved.masks["Nodule"])
    assert (x, y) == pytest.approx((expected_x, expected_y), abs=0.7)
    assert moved.facts["transform"]["shift"] == pytest.approx((12.8, -10.24))
    assert plain.facts["spacing"] == pytest.approx(1.2 * moved.facts["spacing"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"view": "oblique"}, "'frontal' or 'lateral' or an angle"),
        ({"findings": ("Fracture",)}, "unknown finding 'Fracture'"),
        ({"size": 8}, "32 to 4096"),
        ({"transform": (0, 0, (0, 0))}, "scale"),
    ],
)
def test_errors_say_what_is_possible(arguments, message):
    with pytest.raises(ValueError, match=message):
        thorax(0, 0, **arguments)
    with pytest.raises(ValueError, match="whole number"):
        thorax(-1, 0)
    with pytest.raises(ValueError, match="calibre"):
        fillet(0, 0, calibre=4)


def test_fillet_calibres_are_ordered_and_as_stated():
    widths = {}
    for calibre in (1, 2, 3):
        measured = []
        for index in range(25):
            film = fillet(0, index, calibre=calibre, size=200)
            assert film.label == "bone" and film.facts["calibre"] == calibre
            # Near the edge of the film a bone that is cut off looks wider than it is.
            inner = ndimage.distance_transform_edt(film.masks["bone"])[40:-40, 40:-40]
            measured.append(2 * inner.max())
            assert measured[-1] == pytest.approx(film.facts["calibre_px"], abs=1.5 + 0.15 * measured[-1])
        widths[calibre] = measured
    assert max(widths[1]) < min(widths[2]) and max(widths[2]) < min(widths[3])


def test_bones_are_brighter_than_the_flesh_beside_them():
    for calibre in (1, 2, 3):
        for index in range(10):
            film = fillet(1, index, calibre=calibre)
            bone = film.masks["bone"]
            beside = ndimage.binary_dilation(bone, iterations=5) & ~ndimage.binary_dilation(
                bone, iterations=2
            )
            assert film.pixels[bone].mean() > film.pixels[beside].mean()


def test_a_fillet_without_bone_has_no_mask_and_calibres_are_shared_out():
    films = [fillet(2, index) for index in range(200)]
    assert {film.facts["calibre"] for film in films} == {0, 1, 2, 3}
    assert 0.4 < np.mean([film.label == "no_bone" for film in films]) < 0.6
    assert all(bool(film.masks) == (film.label == "bone") for film in films)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_our_png_is_read_back_by_pillow(dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (37, 53), dtype=dtype, endpoint=True)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))).astype(dtype), pixels)


def test_a_written_series_reads_as_a_manifest(tmp_path):
    seen = []
    path = write_phantoms(tmp_path, "thorax", 30, 5, mix=Mix(size=64), workers=2, progress=seen.append)
    table = read_manifest(path)
    assert len(table) == 30 and finding_columns(table) == list(FINDINGS)
    assert seen[0] == 0 and seen[-1] == 30
    assert set(table["view"]) == {"frontal", "lateral"} and table["patient_id"].nunique() == 15
    for row in table.itertuples():
        assert {box["finding"] for box in row.boxes} <= {name for name in FINDINGS if getattr(row, name)}
        for finding, where in (json.loads(row.masks) if row.masks else {}).items():
            mask = np.asarray(Image.open(tmp_path / where)) > 0
            box = next(box for box in row.boxes if box["finding"] == finding)
            assert mask.any(0).sum() <= box["width"] and mask.shape == (64, 64)
    pixels = kxray.read_image(table["path"].iloc[3]).pixels
    assert pixels.shape == (64, 64)


def test_count_workers_and_interruption_do_not_change_films(tmp_path):
    mix = Mix(size=48)
    short = write_phantoms(tmp_path / "a", "thorax", 7, 1, mix=mix, workers=1)
    long = write_phantoms(tmp_path / "b", "thorax", 60, 1, mix=mix, workers=2)
    assert short.read_text().splitlines() == long.read_text().splitlines()[:8]
    for film in (tmp_path / "a" / "films").iterdir():
        assert film.read_bytes() == (tmp_path / "b" / "films" / film.name).read_bytes()
    # A run that stopped half way: chunks without their note, films that vanished, a left-over temporary file.
    (tmp_path / "b" / "manifest.csv").unlink()
    (tmp_path / "b" / ".parts" / "000001.csv").unlink()
    (tmp_path / "b" / "films" / "000003.png").unlink()
    again = write_phantoms(tmp_path / "b", "thorax", 60, 1, mix=mix, workers=1)
    assert again.read_text() == long.read_text()
    longer = write_phantoms(tmp_path / "a", "thorax", 60, 1, mix=mix, workers=1)
    assert longer.read_text() == long.read_text()


def test_a_folder_of_other_films_is_refused(tmp_path):
    write_phantoms(tmp_path, "fillet", 2, 0, workers=1)
    with pytest.raises(ValueError, match="seed 0, now 1"):
        write_phantoms(tmp_path, "fillet", 2, 1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.csv").write_text("path\n")
    with pytest.raises(ValueError, match="other films"):
        write_phantoms(other, "fillet", 2, 0)


def test_views_and_findings_follow_the_mix(tmp_path):
    mix = Mix(size=48, views=("lateral",), findings=("Mass",))
    table = read_manifest(write_phantoms(tmp_path, "thorax", 24, 0, mix=mix, workers=1))
    assert set(table["view"]) == {"lateral"}
    assert 0 < table["Mass"].sum() < 24 and table[list(FINDINGS)].sum().sum() == table["Mass"].sum()
    with pytest.raises(ValueError, match="unknown finding Gout"):
        Mix(findings=("Gout",))
    with pytest.raises(ValueError, match="views"):
        Mix(views=("oblique",))


def test_the_share_of_lateral_films_is_the_one_asked_for():
    from kxray.data.phantom.series import film

    for fraction in (0.0, 0.3, 0.8, 1.0):
        mix = Mix(size=32, lateral_fraction=fraction, findings="none")
        share = np.mean([film("thorax", 0, index, mix).label == "lateral" for index in range(160)])
        assert share == pytest.approx(fraction, abs=0.1)


def test_dicom_films_equal_png_films(tmp_path):
    for file_format in ("png", "dicom"):
        write_phantoms(
            tmp_path / file_format, "thorax", 12, 0, mix=Mix(size=64, format=file_format), workers=1
        )
    tables = [read_manifest(tmp_path / name / "manifest.csv") for name in ("png", "dicom")]
    photometric = set()
    for first, second in zip(tables[0]["path"], tables[1]["path"], strict=True):
        film = kxray.read_image(second)
        assert np.abs(film.pixels - kxray.read_image(first).pixels).max() <= 0.5 / 4095 + 1 / 65535
        header = pydicom.dcmread(second)
        photometric.add(header.PhotometricInterpretation)
        assert (header.BitsStored, header.Modality, header.Rows) == (12, "DX", 64)
        assert header.PatientID.startswith("P") and header.ViewPosition in ("PA", "AP", "LL")
        assert header.PixelSpacing[0] == pytest.approx(float(header.ImagerPixelSpacing[0]))
    assert photometric == {"MONOCHROME1", "MONOCHROME2"}
