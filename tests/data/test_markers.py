import numpy as np
import pytest

from kxray.data import markers
from kxray.data.markers import find_markers, marker_properties, marker_shapes
from kxray.data.phantom import exposure, fillet, thorax

L = np.zeros((12, 9), bool)
L[:, :3] = L[9:] = True
T = np.zeros((12, 9), bool)
T[:3] = T[:, 3:6] = True


def ground(side=128, seed=0):
    """A dim film with a soft bright middle and some noise."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    film = 0.15 + 0.5 * np.exp(-12 * (x * x + y * y))
    return (film + np.random.default_rng(seed).normal(0, 0.01, (side, side))).astype(np.float32).clip(0, 1)


def with_sign(sign, y, x, tone=0.95, seed=0):
    film = ground(seed=seed)
    film[y : y + sign.shape[0], x : x + sign.shape[1]][sign] = tone
    return film


@pytest.mark.parametrize(
    ("y", "x", "place"),
    [
        (6, 8, "top left"),
        (6, 110, "top right"),
        (110, 60, "bottom"),
        (60, 6, "left"),
        (112, 112, "bottom right"),
    ],
)
def test_a_letter_is_found_where_it_is(y, x, place):
    (found,) = find_markers(with_sign(L, y, x))
    assert (found.kind, found.place) == ("text", place)
    assert (found.x, found.y, found.width, found.height) == (x, y, 9, 12)
    assert found.tone == pytest.approx(0.95) and found.appearance.shape == (16, 16)


def test_dark_letters_count_and_letters_in_the_middle_do_not():
    film = ground() * 0.3 + 0.6
    film[6:18, 8:17][L] = 0.05
    (found,) = find_markers(film)
    assert (found.kind, found.place) == ("text", "top left") and found.tone == pytest.approx(0.05)
    assert find_markers(with_sign(L, 58, 58)) == []


def test_letters_beside_each_other_are_one_marker():
    film = with_sign(L, 6, 8)
    film[7:19, 22:31][T] = 0.95
    (found,) = find_markers(film)
    assert (found.x, found.y, found.width, found.height) == (8, 6, 23, 13)


def test_a_redaction_box_and_a_blank_margin_are_told_apart():
    film = ground()
    film[100:120, 20:60] = 1.0
    (box,) = find_markers(film)
    assert box.kind == "box" and box.place == "bottom left" and box.tone == 1.0
    assert abs(box.x - 20) <= 1 and abs(box.width - 40) <= 2 and abs(box.height - 20) <= 2
    film = ground()
    film[:, :10] = 0.0
    film[120:] = 0.0
    strips = find_markers(film)
    assert [(s.kind, s.place) for s in strips] == [("strip", "bottom"), ("strip", "left")]
    assert strips[1].width == 10 and strips[0].height == 8
    # A box in the corner of the film touches its edges.
    film = ground()
    film[:16, :20] = 1.0
    (corner,) = find_markers(film)
    assert (corner.kind, corner.place) == ("box", "top left")


def test_large_films_are_looked_at_in_their_own_pixels():
    film = np.kron(with_sign(L, 6, 8), np.ones((20, 20), np.float32))
    (found,) = find_markers(film)
    assert found.kind == "text" and abs(found.x - 160) <= 20 and abs(found.width - 180) <= 20


@pytest.mark.parametrize(
    "film",
    [
        np.zeros((64, 64)),
        np.full((64, 64), 0.5),
        np.ones((8, 8)),
        ground(),
        np.linspace(0, 1, 4096).reshape(64, 64),
    ],
)
def test_films_without_markers_have_none(film):
    assert find_markers(film) == []


def test_what_is_no_film_says_so():
    with pytest.raises(ValueError, match=r"shape \(4, 4, 3\)"):
        find_markers(np.zeros((4, 4, 3)))


def test_clean_phantoms_raise_few_alarms_and_stamped_ones_are_found(monkeypatch):
    stamp = exposure.stamp
    alarms = found = stamped = 0
    for index in range(24):
        monkeypatch.setattr(exposure, "stamp", lambda *_: None)
        clean = thorax(5, index, view=("frontal", "lateral")[index % 2], size=128).pixels
        monkeypatch.setattr(exposure, "stamp", stamp)
        marked = thorax(5, index, view=("frontal", "lateral")[index % 2], size=128).pixels
        alarms += any(marker.kind != "strip" for marker in find_markers(clean))
        rows, columns = np.nonzero(np.abs(marked - clean) > 0.05)
        if len(rows):
            y, x = rows.mean(), columns.mean()
            stamped += 1
            found += any(
                m.x - 5 <= x <= m.x + m.width + 5 and m.y - 5 <= y <= m.y + m.height + 5
                for m in find_markers(marked)
            )
    assert alarms <= 1
    # Letters over bone are as bright as it is.
    assert stamped >= 12 and found >= 0.5 * stamped
    assert not any(m.kind != "strip" for index in range(12) for m in find_markers(fillet(1, index).pixels))


def test_properties_name_place_and_shape():
    films = [find_markers(with_sign(L if i % 2 else T, 6, 8, seed=i)) for i in range(20)]
    films += [find_markers(ground(seed=i)) for i in range(10)]
    shapes = marker_shapes(films)
    assert [len(film) for film in shapes] == [1] * 20 + [0] * 10
    of_letter = [{film[0] for film in shapes[k:20:2]} for k in (0, 1)]
    assert of_letter[0] != of_letter[1] and all(len(letter) == 1 for letter in of_letter)
    found = marker_properties(films)
    assert set(found) == {"any text", "text top left", *(f"text like #{k} (mostly top left)" for k in (1, 2))}
    assert (found["text top left"] == "yes").sum() == 20 and (
        found["text like #1 (mostly top left)"] == "yes"
    ).sum() == 10
    assert marker_properties([[], []]) == {}


def text(seed):
    """A text whose picture is noise, unlike any other."""
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16)).astype(np.uint8)
    return markers.Marker("text", 0, 0, 9, 9, 1.0, "top", noise)


def test_shapes_are_found_again_among_many_and_no_more_than_that_are_started(monkeypatch):
    films = [[text(seed)] for seed in range(150)]
    shapes = marker_shapes([*films, *films[:3], films[0], films[0]])
    # The most frequent first; of 150 shapes three were seen again.
    assert [shape[0] for shape in shapes[:4]] == [1, 2, 3, 0] and [s[0] for s in shapes[-2:]] == [1, 1]
    monkeypatch.setattr(markers, "_MOST_SHAPES", 100)
    shapes = marker_shapes([*films, *films[97:103]])
    assert [shape[0] for shape in shapes[-6:]] == [1, 2, 3, 0, 0, 0]


def test_known_shapes_are_taken(monkeypatch):
    films = [find_markers(with_sign(L if i % 2 else T, 6, 8, seed=i)) for i in range(20)]
    films += [find_markers(ground(seed=i)) for i in range(10)]
    shapes, asked = marker_shapes(films), marker_properties(films)
    monkeypatch.delattr(markers, "marker_shapes")
    again = marker_properties(films, shapes)
    assert again.keys() == asked.keys() and all((again[name] == asked[name]).all() for name in asked)


def test_a_shape_seen_once_has_no_number():
    films = [find_markers(with_sign(L, 6, 8)), find_markers(with_sign(T, 6, 8))]
    assert marker_shapes(films) == [[0], [0]]
    assert markers.marker_shapes([find_markers(ground())]) == [[]]
