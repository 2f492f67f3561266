"""Probability masks: planted boxes, shrinkage by hand, and whose picture wins."""

import json

import numpy as np
import pytest
from PIL import Image

from kxray.data import DiseaseMasks, box_cover, chest_regions, disease_masks, disease_prior, maps_from_model
from kxray.data.phantom import FINDINGS
from kxray.data.similarity import Similarity
from kxray.io import write_png16


def quad(left, top, right, bottom):
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def square_regions(size=16):
    """Lungs from row 2 to 9 at columns 1-5 and 10-14, the heart at rows 8-11 and columns 6-9."""
    regions = {name: np.zeros((size, size), bool) for name in ("right_lung", "left_lung", "heart")}
    regions["right_lung"][2:10, 1:6] = True
    regions["left_lung"][2:10, 10:15] = True
    regions["heart"][8:12, 6:10] = True
    return regions


def centre_of_mass(map_):
    rows, columns = np.indices(map_.shape)
    return (map_ * rows).sum() / map_.sum(), (map_ * columns).sum() / map_.sum()


def test_a_box_covers_the_pixels_whose_middles_it_holds():
    # On 8 x 8 pixels of 1/8: x from -0.3 to 0.05 is pixel edges 1.6 to 4.4, middles 2.5, 3.5; y 4.8 to 6.4.
    cover = box_cover(quad(-0.3, 0.1, 0.05, 0.3), 8)
    expected = np.zeros((8, 8), bool)
    expected[5, 2:4] = True
    assert (cover == expected).all()
    assert (box_cover(quad(-0.3, 0.1, 0.05, 0.3)[::-1], 8) == expected).all(), "whichever way round"


def test_a_box_smaller_than_a_pixel_is_one_pixel_and_one_outside_none():
    assert np.argwhere(box_cover(quad(0.01, 0.01, 0.02, 0.02), 8)).tolist() == [[4, 4]]
    assert not box_cover(quad(0.6, 0, 0.8, 0.2), 8).any()


def test_a_turned_box_covers_its_own_area_and_no_more():
    upright = quad(-0.2, -0.1, 0.2, 0.1)
    turned = Similarity(rotation=30).apply(upright)
    assert box_cover(turned, 200).mean() == pytest.approx(0.4 * 0.2, rel=0.02)
    # Anticlockwise as seen: its right end goes up.
    rows, columns = np.nonzero(box_cover(turned, 200))
    assert rows[columns > 125].mean() < 100 < rows[columns < 75].mean()


def test_without_boxes_a_mask_is_the_prior():
    for regions in (None, square_regions()):
        masks = disease_masks(FINDINGS, [], regions=regions, size=32)
        for label, map_ in zip(FINDINGS, masks.maps, strict=True):
            assert (map_ == disease_prior(label, regions, 32)).all()
        assert masks.counts == (0,) * 8 and all("no boxes, prior of" in source for source in masks.sources)


def test_shrinkage_by_hand():
    regions = square_regions()
    prior = disease_prior("Cardiomegaly", regions, 16)
    box = quad(-0.5, -0.5, -0.25, -0.25)  # pixels 0-3 of 16, where no heart is
    boxes = [("Cardiomegaly", box)] * 3
    masks = disease_masks(["Cardiomegaly"], boxes, regions=regions, size=16, smoothing=0)
    # Prior weight 10 / 13; the occupancy is 1 in the box. The prior's 1 stays the largest value.
    assert masks.maps[0, :4, :4] == pytest.approx(prior[:4, :4] + 3 / 10, abs=1e-4)
    assert masks.maps[0, 10] == pytest.approx(prior[10])
    assert masks.sources == ("3 boxes, prior weight 0.77",) and masks.counts == (3,)


def test_occupancy_is_the_share_of_boxes():
    boxes = [("Cardiomegaly", quad(-0.25, -0.25, 0.25, 0.25)), ("Cardiomegaly", quad(-0.25, -0.25, 0, 0.25))]
    masks = disease_masks(["Cardiomegaly"], boxes, size=8, smoothing=0, strength=1e-9)
    assert masks.maps[0, 2:6, 2:4] == pytest.approx(1) and masks.maps[0, 2:6, 4:6] == pytest.approx(0.5)
    assert masks.maps[0, :2].max() < 1e-6


def test_more_boxes_come_closer_to_the_occupancy():
    box = ("Mass", quad(-0.3, -0.2, -0.15, 0.0))
    occupancy = disease_masks(["Mass"], [box], strength=1e-9, smoothing=0, size=32).maps[0]
    prior = disease_prior("Mass", size=32)
    distances, to_prior = [], []
    for number in (0, 1, 2, 5, 20, 100, 1000):
        map_ = disease_masks(["Mass"], [box] * number, smoothing=0, size=32).maps[0]
        assert map_.max() == 1 and map_.min() >= 0
        distances.append(np.abs(map_ - occupancy).mean())
        to_prior.append(np.abs(map_ - prior).mean())
    assert np.all(np.diff(distances) < 0) and np.all(np.diff(to_prior) > 0)
    assert distances[-1] < 0.01 * distances[0]


def test_smoothing_narrows_with_boxes():
    box = ("Cardiomegaly", quad(-0.1, -0.1, 0.1, 0.1))
    masks = [disease_masks(["Cardiomegaly"], [box] * number, strength=1e-9) for number in (1, 10, 1000)]
    areas = [each.maps[0].mean() for each in masks]
    assert areas[0] > areas[1] > areas[2] > (12 / 64) ** 2, "the last still wider than the box's 12 pixels"


def test_masks_peak_where_the_boxes_are():
    random = np.random.default_rng(0)
    middles = random.normal((-0.2, 0.2), 0.03, (40, 2))
    boxes = [("Nodule", quad(x - 0.05, y - 0.05, x + 0.05, y + 0.05)) for x, y in middles]
    map_ = disease_masks(["Nodule", "Mass"], boxes, size=64).select(["Nodule"]).maps[0]
    row, column = np.unravel_index(map_[:, :32].argmax(), (64, 32))
    assert abs(row - 0.7 * 64) < 4 and abs(column - 0.3 * 64) < 4


def test_only_diseases_without_a_side_are_mirrored():
    boxes = [(label, quad(-0.4, 0.0, -0.2, 0.2)) for label in ("Cardiomegaly", "Effusion")]
    options = {"size": 32, "strength": 1e-9}
    heart, effusion = disease_masks(["Cardiomegaly", "Effusion"], boxes, **options).maps
    assert effusion == pytest.approx(effusion[:, ::-1], abs=1e-5)
    assert heart[:, 24:].max() < 0.01 and effusion[:, 24:].max() > 0.6
    alone = disease_masks(["Effusion"], boxes, mirrored=(), **options).maps[0]
    assert alone == pytest.approx(heart, abs=1e-5)


def test_a_mirrored_box_across_the_middle_counts_once():
    box = ("Effusion", quad(-0.25, -0.25, 0.125, 0.25))
    map_ = disease_masks(["Effusion"], [box], size=8, smoothing=0, strength=1e-9).maps[0]
    assert map_[4] == pytest.approx([0, 0, 1, 1, 1, 1, 0, 0], abs=1e-6)


def test_boxes_of_others_and_outside_the_frame_do_not_count():
    boxes = [("Fibrosis", quad(-0.1, -0.1, 0.1, 0.1)), ("Mass", quad(0.6, 0.6, 0.9, 0.9))]
    masks = disease_masks(["Mass"], boxes)
    assert masks.counts == (0,) and (masks.maps[0] == disease_prior("Mass")).all()


def test_priors_lie_where_anatomy_says():
    """Middle of mass of each prior within the lungs: 0 is their apex, 1 their base."""
    regions = chest_regions(64)
    rows = np.nonzero(regions["right_lung"].any(axis=1))[0]
    depth = {
        label: (centre_of_mass(disease_prior(label))[0] - rows[0]) / np.ptp(rows)
        for label in (*FINDINGS, "Fibrosis")
    }
    assert depth["Pneumothorax"] < 0.45
    assert depth["Mass"] == depth["Nodule"] == depth["Fibrosis"] == pytest.approx(0.5, abs=0.02)
    assert 0.5 < depth["Pneumonia"] == depth["Infiltration"] < depth["Atelectasis"] < depth["Effusion"]
    heart = disease_prior("Cardiomegaly")
    assert (heart[regions["heart"]] > 0.5).all()
    # The heart's apex points to the patient's left, the right of the film.
    assert centre_of_mass(heart)[1] > 32
    right_side = disease_prior("Effusion")[:, :32]
    assert right_side.argmax() % 32 < centre_of_mass(regions["right_lung"][:, :32])[1], "at its outer angle"


def test_priors_follow_the_regions_of_the_template():
    prior = disease_prior("Nodule", square_regions(), 16)
    assert prior[4:8, 2:5].min() > 0.9 and prior[4:8, 11:14].min() > 0.9 and prior[12:].max() < 0.1
    assert disease_prior("Nodule", square_regions(), 64).shape == (64, 64)


def test_a_template_without_lungs_leaves_the_built_in_regions():
    empty = {name: np.zeros((16, 16), bool) for name in square_regions()}
    masks = disease_masks(["Mass"], [], regions=empty)
    assert (masks.maps[0] == disease_prior("Mass")).all()
    assert masks.sources == ("no boxes, prior of built-in regions, as the template shows no lungs",)


def test_names_of_other_collections():
    assert (disease_prior("Pleural Effusion") == disease_prior("Effusion")).all()
    everywhere, lungs = disease_prior("No Finding"), disease_prior("Lung Lesion")
    assert everywhere[chest_regions()["heart"]].min() > 0.4 and everywhere.sum() > lungs.sum()


def test_maps_of_a_first_model_stand_in_for_boxes():
    masks = disease_masks(
        ["Effusion", "Mass", "Nodule"], [("Mass", quad(-0.1, -0.1, 0.1, 0.1))], size=16, strength=10
    )
    seen = np.zeros((4, 16, 16))
    seen[:2, 3, 4] = 7  # two films agree, one points elsewhere, one nowhere
    seen[2, 8, 8] = 0.1
    seen[3] = -1
    options = {"smoothing": 0, "mirrored": (), "strength": 6}
    mixed = maps_from_model(masks, {"Effusion": seen, "Mass": seen}, **options)
    # 3 films, weight of the prior 6 / 9; the film's mean is 2/3 and 1/3, divided by 2/3.
    expected = 2 / 3 * masks.maps[0]
    expected[3, 4] += 1 / 3
    expected[8, 8] += 1 / 3 / 2
    assert mixed.maps[0] == pytest.approx(expected / expected.max(), abs=1e-6)
    assert (mixed.maps[1:] == masks.maps[1:]).all(), "boxes stay, and what no map is of"
    assert mixed.sources[0] == "a first model's maps of 3 films, prior weight 0.67"
    assert mixed.sources[1:] == masks.sources[1:] and mixed.counts == masks.counts


def test_maps_of_a_model_are_stretched_and_mirrored():
    masks = disease_masks(["Effusion", "Cardiomegaly"], [], size=32)
    seen = np.zeros((50, 8, 8))
    seen[:, 6, 1] = 1
    effusion, heart = maps_from_model(masks, dict.fromkeys(masks.labels, seen), strength=1e-9).maps
    assert effusion == pytest.approx(effusion[:, ::-1], abs=1e-5)
    # Pixel (6, 1) of 8 is the pixels (24 to 27, 4 to 7) of 32.
    row, column = divmod(int(heart.argmax()), 32)
    assert heart[:, 16:].max() < 0.01 and 25 <= row <= 26 and 5 <= column <= 6


def test_saved_masks_come_back(tmp_path):
    boxes = [("Pleural Effusion", quad(-0.4, 0.1, -0.2, 0.3))]
    masks = disease_masks(["Pleural Effusion", "Mass"], boxes, size=24)
    masks.save(tmp_path / "masks")
    names = sorted(file.name for file in (tmp_path / "masks").iterdir())
    assert names == ["Mass.png", "Pleural_Effusion.png", "masks.json", "masks.npz"]
    loaded = DiseaseMasks.load(tmp_path / "masks")
    assert (loaded.maps == masks.maps).all() and loaded.maps.dtype == np.float32
    assert (loaded.labels, loaded.sources, loaded.counts) == (masks.labels, masks.sources, masks.counts)
    described = json.loads((tmp_path / "masks" / "masks.json").read_text())
    assert described[0] == {
        "disease": "Pleural Effusion",
        "boxes": 1,
        "source": "1 box, prior weight 0.91",
        "picture": "Pleural_Effusion.png",
    }


def test_the_picture_of_a_user_wins(tmp_path):
    masks = disease_masks(["Effusion", "Mass"], [("Mass", quad(-0.1, -0.1, 0.1, 0.1))], size=16)
    masks.save(tmp_path)
    painted = np.zeros((80, 40), np.uint8)
    painted[60:, :20] = 200
    (tmp_path / "Mass.png").unlink()
    Image.fromarray(painted).save(tmp_path / "mass.PNG")
    loaded = DiseaseMasks.load(tmp_path)
    assert (loaded.maps[0] == masks.maps[0]).all()
    assert loaded.maps[1, 13:, :7] == pytest.approx(1) and loaded.maps[1, :11].max() == 0
    assert loaded.sources[1] == "picture mass.PNG, 40 x 80 pixels" and loaded.counts == (0, 0)
    seen = np.ones((3, 8, 8))
    again = maps_from_model(loaded, {"Mass": seen, "Effusion": seen})
    assert (again.maps[1] == loaded.maps[1]).all() and "first model" in again.sources[0]
    # What was loaded is saved as what it is.
    again.save(tmp_path / "again")
    assert DiseaseMasks.load(tmp_path / "again").sources == again.sources


def test_a_folder_of_pictures_alone(tmp_path):
    masks = disease_masks(["Effusion", "Mass"], [])
    with pytest.raises(ValueError, match="no picture of a disease; expected PNGs named Effusion.png, M"):
        masks.with_pictures(tmp_path)
    write_png16(tmp_path / "Mass.png", np.tile(np.linspace(0, 0.5, 64, dtype=np.float32), (64, 1)))
    write_png16(tmp_path / "template.png", np.ones((4, 4), np.float32))
    replaced = masks.with_pictures(tmp_path)
    assert replaced.maps[1] == pytest.approx(np.tile(np.linspace(0, 1, 64), (64, 1)), abs=1e-4)
    assert (replaced.maps[0] == masks.maps[0]).all()
    with pytest.raises(ValueError, match="no masks.npz"):
        DiseaseMasks.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "picture", "message"),
    [
        ("Mass.png", Image.new("RGB", (8, 8), (255, 0, 0)), "colour picture"),
        ("Mass.png", Image.new("P", (8, 8)), "palette"),
        ("Mass.png", Image.new("L", (8, 8)), "black mask, which hides Mass"),
        ("Mass.png", b"not a picture", "Mass.png"),
        ("Efusion.png", Image.new("L", (8, 8), 255), "did you mean Effusion.png"),
    ],
)
def test_pictures_that_cannot_be_masks(tmp_path, name, picture, message):
    masks = disease_masks(["Effusion", "Mass"], [])
    masks.save(tmp_path / "saved")
    for folder in (tmp_path / "saved", tmp_path / "alone"):
        folder.mkdir(exist_ok=True)
        if isinstance(picture, bytes):
            (folder / name).write_bytes(picture)
        else:
            picture.save(folder / name)
    for read, folder in ((DiseaseMasks.load, "saved"), (masks.with_pictures, "alone")):
        with pytest.raises(ValueError, match=message) as caught:
            read(tmp_path / folder)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_two_pictures_of_one_disease(tmp_path):
    for name in ("Pleural_Effusion.png", "Pleural Effusion.png"):
        Image.new("L", (8, 8), 255).save(tmp_path / name)
    with pytest.raises(ValueError, match="second picture of Pleural Effusion"):
        disease_masks(["Pleural Effusion"], []).with_pictures(tmp_path)


def test_damaged_masks_are_one_line(tmp_path):
    (tmp_path / "masks.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match="not a readable set of disease masks"):
        DiseaseMasks.load(tmp_path)
    for others in ({}, {"maps": np.ones((1, 8, 8)), "sources": ["x"], "counts": [[1]]}):
        np.savez(tmp_path / "masks.npz", labels=["Mass"], **others)
        with pytest.raises(ValueError, match="not a readable set of disease masks"):
            DiseaseMasks.load(tmp_path)


def test_uniform_and_selected_masks():
    masks = DiseaseMasks.uniform(["Mass", "Nodule"], 8)
    assert masks.maps.shape == (2, 8, 8) and (masks.maps == 1).all() and masks.size == 8
    assert masks.select(["Nodule"]).labels == ("Nodule",)
    with pytest.raises(ValueError, match="no mask for 'Hernia'; there are masks for Mass, Nodule"):
        masks.select(["Hernia"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: disease_masks([], []), "names of diseases"),
        (lambda: disease_masks(["Mass", "mass"], []), "different names"),
        (lambda: disease_masks(["Mass"], [("Mass", np.zeros((2, 2)))]), "four corners"),
        (lambda: disease_masks(["Mass"], [], strength=0), "strength above 0"),
        (lambda: disease_masks(["Mass"], [], regions={"heart": np.ones((4, 4))}), "regions right_lung"),
        (
            lambda: disease_prior("Mass", square_regions() | {"heart": np.zeros((16, 16))}),
            "not empty for heart",
        ),
        (lambda: DiseaseMasks(("Mass",), np.zeros((1, 4, 4)), ("",), (0,)), "reach 1"),
        (lambda: DiseaseMasks(("Mass",), np.full((1, 4, 4), np.nan), ("",), (0,)), "reach 1"),
        (lambda: DiseaseMasks(("Mass",), np.ones((2, 4, 4)), ("",), (0,)), r"masks \(1, m, m\)"),
        (lambda: DiseaseMasks(("Mass",), np.ones((1, 4, 4)), (), (0,)), "a source and a count"),
        (
            lambda: maps_from_model(DiseaseMasks.uniform(["Mass"]), {"Hernia": np.ones((1, 4, 4))}),
            "no mask for 'Hernia'",
        ),
        (
            lambda: maps_from_model(DiseaseMasks.uniform(["Mass"]), {"Mass": np.ones((4, 4))}),
            r"maps \(N, h, w\) of Mass",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
