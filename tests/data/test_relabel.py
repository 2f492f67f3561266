"""Sizes of planted bars, discs and bones; thresholds between them; labels that follow."""

import json

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from PIL import Image

import kxray
from kxray import data
from kxray.data.calibre import NO_RIDGE, mask_area, mask_width, ridge_calibre, strongest_ridge
from kxray.data.phantom import Mix, fillet, write_phantoms
from kxray.data.relabel import (
    box_size,
    check_thresholds,
    kept_labels,
    measure_sizes,
    relabel_by_size,
    size_classes,
    size_thresholds,
)
from kxray.data.truth import find_masks


def bar(width, degrees=0.0, *, size=100, shift=0.0, background=0.3, height=0.4):
    """A bar of that width across the middle of a film, its edges antialiased by area."""
    fine = 4
    at = (np.arange(size * fine) + 0.5) / fine - size / 2
    y, x = np.meshgrid(at, at, indexing="ij")
    across = np.cos(np.radians(degrees)) * y - np.sin(np.radians(degrees)) * x - shift
    inside = (np.abs(across) <= width / 2).reshape(size, fine, size, fine).mean(axis=(1, 3))
    return (background + height * inside).astype(np.float32)


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(st.floats(2, 28), st.floats(0, 180), st.floats(-10, 10))
def test_a_bar_measures_its_width_at_any_angle(width, degrees, shift):
    ridge = strongest_ridge(bar(width, degrees, shift=shift))
    assert ridge.width == pytest.approx(width, rel=0.1, abs=0.25)
    y, x = ridge.y - 49.5, ridge.x - 49.5
    off = np.cos(np.radians(degrees)) * y - np.sin(np.radians(degrees)) * x - shift
    assert abs(off) < 0.5 + width / 8, "it is measured at the middle of the bar"
    x1, y1, x2, y2 = ridge.ends()
    assert np.hypot(x2 - x1, y2 - y1) == pytest.approx(ridge.width)
    assert abs(abs(np.cos(np.radians(degrees)) * (y2 - y1) - np.sin(np.radians(degrees)) * (x2 - x1))) >= (
        0.95 * ridge.width
    ), "the line runs across the bar"


@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(st.floats(3, 20), st.floats(0.1, 0.6), st.floats(0.05, 0.35), st.integers(0, 9))
def test_brightness_contrast_and_noise_do_not_change_a_width(width, background, height, seed):
    noise = np.random.default_rng(seed).normal(0, height / 20, (100, 100))
    film = np.clip(bar(width, 30, background=background, height=height) + noise, 0, 1).astype(np.float32)
    assert ridge_calibre(film) == pytest.approx(width, rel=0.12, abs=0.3)


def test_the_edge_of_the_field_is_no_ridge():
    edge = np.full((100, 100), 0.3, np.float32)
    edge[:, 40:] = 0.6
    assert strongest_ridge(edge) == NO_RIDGE
    with_rib = edge.copy()
    with_rib[60:63] += 0.15
    assert ridge_calibre(with_rib) == pytest.approx(3, abs=0.5)


def test_films_without_a_ridge_have_no_width():
    assert strongest_ridge(np.full((64, 64), 0.5, np.float32)) == NO_RIDGE
    assert np.isnan(ridge_calibre(np.ones((8, 8), np.float32)))
    slope = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, axis=0)
    assert np.isnan(ridge_calibre(slope))


def test_a_dark_line_is_no_bone():
    film = bar(5, 20, background=0.6, height=-0.3)
    assert not ridge_calibre(film) == pytest.approx(5, abs=1)
    film = np.maximum(film, bar(4, 110, background=0, height=0.8))
    assert ridge_calibre(film) == pytest.approx(4, abs=0.6)


def test_the_wider_of_two_equally_strong_ridges_counts_and_boxes_choose():
    film = np.maximum(bar(3, 0, shift=-30), bar(12, 0, shift=20))
    assert ridge_calibre(film) == pytest.approx(12, rel=0.06)
    upper = {"finding": "bone", "x": 0, "y": 0, "width": 100, "height": 40}
    assert ridge_calibre(film) != strongest_ridge(film, [upper]).width == pytest.approx(3, abs=0.4)
    assert strongest_ridge(film, [{**upper, "height": 2, "width": 1}]) == NO_RIDGE


def test_large_films_are_measured_in_their_own_pixels():
    film = np.zeros((300, 1400), np.float32)
    film[140:170] = 0.5
    ridge = strongest_ridge(film)
    assert ridge.width == pytest.approx(30, rel=0.06) and ridge.y == pytest.approx(154.5, abs=3)


@pytest.mark.parametrize("pixels", [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 1), np.float32)])
def test_what_is_no_film_is_refused(pixels):
    with pytest.raises(ValueError, match=r"expected float pixels \(H, W\)"):
        strongest_ridge(pixels)
    with pytest.raises(ValueError, match=r"expected pixels in \[0, 1\], got 0 to 255"):
        strongest_ridge(np.float32([[0, 255], [0, 0]]))


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(st.integers(1, 20), st.integers(0, 40), st.booleans())
def test_a_mask_of_so_many_rows_has_that_width(rows, first, turned):
    mask = np.zeros((64, 50), bool)
    mask[first : first + rows] = True
    mask = mask.T if turned else mask
    assert mask_width(mask) == rows and mask_area(mask) == 50 * rows


def test_masks_of_discs_slanted_bars_and_nothing():
    y, x = np.mgrid[:80, :80] - 40
    assert mask_width(np.hypot(y, x) <= 15) == pytest.approx(30, abs=1.5)
    assert mask_width(bar(9, 37) > 0.5) == pytest.approx(9, abs=1.3), "jagged edges take some"
    assert mask_width(np.zeros((9, 9), bool)) == 0 and mask_width(np.ones((6, 9), bool)) == 6
    with pytest.raises(ValueError, match="expected a bool mask"):
        mask_width(np.zeros((9, 9)))


def test_the_size_of_boxes_is_the_root_of_the_largest_area():
    boxes = [{"width": 4, "height": 9}, {"width": 2, "height": 2}]
    assert box_size(boxes) == 6 and np.isnan(box_size([]))


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.floats(1, 500), min_size=4, max_size=60, unique=True), st.integers(2, 4))
def test_quantiles_put_equally_many_films_into_each_class(sizes, classes):
    counts = np.bincount(size_classes(sizes, size_thresholds(sizes, classes)), minlength=classes + 1)[1:]
    assert counts.sum() == len(sizes) and counts.max() - counts.min() <= 1 and len(counts) == classes


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(2, 4))
def test_ties_stay_together_and_no_class_is_empty(sizes, classes):
    if len(set(sizes)) < classes:
        with pytest.raises(ValueError, match=f"{len(set(sizes))} distinct sizes, too few for {classes}"):
            size_thresholds(sizes, classes)
    else:
        found = size_classes(sizes, size_thresholds(sizes, classes))
        assert set(found) == set(range(1, classes + 1))
        assert all(len(set(found[np.equal(sizes, size)])) == 1 for size in sizes)


def test_a_size_on_a_threshold_is_above_it_and_no_size_is_the_smallest():
    assert size_classes([2.9, 3, 8, np.nan], (3, 8)).tolist() == [1, 2, 3, 1]
    for wrong in ((8, 3), (3, 3), (0, 3), (np.nan,), (np.inf,)):
        with pytest.raises(ValueError, match="positive pixels in ascending order"):
            check_thresholds(wrong)
    with pytest.raises(ValueError, match="3 size classes need 2 thresholds between them, got 4"):
        check_thresholds((4,), 3)


def test_labels_without_defects_are_recognised():
    kept = ["No Finding", "no_bone", "normal", "none", "negative", "no bones", "Healthy"]
    assert kept_labels([*kept, "bone", "nodule", "Pneumonia", "abnormal", "norm", "nose"]) == sorted(kept)


def test_relabelling_keeps_the_old_label_and_everything_else():
    table = pd.DataFrame({"path": list("abc"), "label": ["bone", "no_bone", "bone"], "view": ["x", "y", "z"]})
    result = relabel_by_size(table, pd.Series([2.0, 9.0], index=[0, 2]), {"bone": (5,)})
    assert result["label"].tolist() == ["bone_scale1", "no_bone", "bone_scale2"]
    assert result["coarse_label"].tolist() == table["label"].tolist()
    assert result["size_px"].fillna(0).tolist() == [2, 0, 9] and result["view"].tolist() == ["x", "y", "z"]
    assert table.columns.tolist() == ["path", "label", "view"]
    with pytest.raises(ValueError, match="relabelled already"):
        relabel_by_size(result, result["size_px"], {})
    with pytest.raises(ValueError, match="no film is labelled rib; labels: bone, no_bone"):
        relabel_by_size(table, pd.Series(dtype=float), {"rib": (5,)})


CALIBRES = (1, 2, 3)


@pytest.mark.parametrize(("size", "count"), [(100, 10), (200, 4)])
def test_nine_in_ten_phantom_bones_get_their_calibre_from_the_image_alone(size, count):
    places = [(seed, i, calibre) for calibre in CALIBRES for seed in range(3) for i in range(count)]
    true = np.array([calibre for _, _, calibre in places])
    sizes = np.array([ridge_calibre(fillet(s, i, size=size, calibre=c).pixels) for s, i, c in places])
    by_pixels = size_classes(sizes, np.multiply((3, 8), size / 100))
    by_quantiles = size_classes(sizes, size_thresholds(sizes, 3))
    assert np.mean(by_pixels == true) >= 0.9 and np.mean(by_quantiles == true) >= 0.9
    assert all(np.mean((by_pixels == true)[true == calibre]) >= 0.8 for calibre in CALIBRES)


@pytest.fixture(scope="module")
def fillets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fillets")
    table = data.read_manifest(write_phantoms(folder, "fillet", 50, 3, mix=Mix(size=100), workers=2))
    return table[table["label"] == "bone"]


@pytest.mark.parametrize("by", ["width", "area", "boxes"])
def test_phantom_films_are_measured_from_their_masks_and_boxes(fillets, by):
    table = fillets
    done = []
    sizes = measure_sizes(table, by, workers=1, progress=done.append)
    assert done[-1] == len(table) and (sizes["problem"] == "").all() and sizes["size_px"].notna().all()
    assert set(sizes["measured_from"]) == {"boxes" if by == "boxes" else "masks"}
    if by == "width":
        true = table["calibre"].map({"thin": 1, "medium": 2, "thick": 3})
        assert np.mean(size_classes(sizes["size_px"], (3, 8)) == true) >= 0.9
        # Masks of a rotated bar are jagged, a vertebra is an hourglass.
        assert np.corrcoef(sizes["size_px"], table["calibre_px"])[0, 1] > 0.95
    elif by == "boxes":
        assert sizes["size_px"].tolist() == [box_size(boxes) for boxes in table["boxes"]]


def write_film(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(path)


def test_the_measure_follows_what_a_film_has(tmp_path):
    for name in ("image", "boxed", "masked", "torn"):
        write_film(tmp_path / f"films/{name}.png", np.maximum(bar(3, shift=-30), bar(12, shift=20)))
    write_film(tmp_path / "masks/1.png", bar(7, shift=0.5, background=0, height=1))
    (tmp_path / "films/torn.png").write_bytes(b"no film")
    box = {"finding": "bone", "x": 10, "y": 5, "width": 80, "height": 20}
    table = pd.DataFrame(
        {
            "path": [f"films/{name}.png" for name in ("image", "boxed", "masked", "torn")],
            "label": "bone",
            "boxes": ["", json.dumps([box, {**box, "finding": "fin", "y": 60}]), "", ""],
            "masks": ["", "", json.dumps({"bone": "masks/1.png"}), ""],
        }
    )
    table.to_csv(tmp_path / "manifest.csv", index=False)
    table = data.read_source(tmp_path)
    sizes = measure_sizes(table, workers=2)
    assert sizes["measured_from"].tolist() == ["image", "boxes", "masks", ""]
    assert sizes["size_px"][:3].tolist() == pytest.approx([12, 3, 7], abs=0.7)
    assert "unreadable film" in sizes["problem"][3] and (sizes["problem"][:3] == "").all()
    assert sizes.loc[0, ["y1", "y2"]].mean() == pytest.approx(69.5, abs=0.7)
    with pytest.raises(ValueError, match="2 of 4 films have neither boxes nor masks"):
        measure_sizes(table, "area")
    with pytest.raises(ValueError, match="expected to measure by width, area, boxes, got 'girth'"):
        measure_sizes(table, "girth")
    areas = measure_sizes(table[1:3], "area")
    assert areas["size_px"].tolist() == [1600, 700]


def test_masks_of_a_film():
    assert find_masks('{"bone": "/films/masks/1.png"}', "a.png") == {"bone": "/films/masks/1.png"}
    assert find_masks("", "a.png") == {} and find_masks(float("nan"), "a.png") == {}
    with pytest.raises(ValueError, match="a.png: masks must be JSON"):
        find_masks("masks/1.png", "a.png")


def test_labels_that_say_that_there_is_no_defect():
    assert kept_labels(["ok", "not_ok"]) == ["ok"]
    assert kept_labels(["normal", "non-union"]) == ["normal"]
    assert kept_labels(["No Finding", "no_bone", "crack", "nodule", "not normal"]) == [
        "No Finding",
        "no_bone",
    ]


@pytest.mark.real_data
def test_vertebrae_measure_more_than_ribs(real_data):
    folder = real_data / "fishbones" / "bone"
    if not folder.is_dir():
        pytest.skip(f"no fish bones at {folder}")
    vertebrae = (22, 24, 26, 33, 45, 48, 67, 76)
    ribs = (3, 6, 12, 41, 46, 57, 72, 74)
    measured = [
        [ridge_calibre(kxray.read_image(folder / f"N0002_{n:04d}.jpg").pixels) for n in some]
        for some in (vertebrae, ribs)
    ]
    assert min(measured[0]) > 15 and max(measured[1]) < 6
