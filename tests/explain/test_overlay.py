"""Films with their maps: colours by hand, film pixels untouched, the picture's size, every wrong input."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kxray import explain
from kxray.explain.overlay import png, resize
from kxray.io.overlay import overlay as blended

RED, BLUE, WHITE = (217, 26, 26), (26, 64, 230), (255, 255, 255)


def picture(figure):
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB")).astype(int)


def find(drawn, wanted, within=1):
    """Top left corners at which the picture `wanted` stands in `drawn`, to within so many grey levels."""
    windows = np.lib.stride_tricks.sliding_window_view(drawn, wanted.shape)[:, :, 0]
    # A few pixels first, which is far less work than all of them at every place.
    places = np.argwhere(
        (np.abs(windows[:, :, ::37, ::41] - wanted[::37, ::41]) <= within).all(axis=(2, 3, 4))
    )
    return [tuple(at) for at in places if (np.abs(windows[tuple(at)] - wanted) <= within).all()]


@pytest.fixture
def film():
    return np.random.default_rng(0).integers(0, 256, (410, 300)).astype("float32") / 255


@pytest.fixture
def signed():
    return np.float32([[1, -2], [0.5, 0]])


def test_every_pixel_of_the_film_is_kept(film, signed):
    drawn = picture(explain.overlay(film, signed, "side_by_side"))
    grey = np.repeat(np.round(film * 255).astype(int)[..., None], 3, axis=2)
    assert len(find(drawn, grey)) == 1
    silent = picture(explain.overlay(film, np.zeros((7, 7)), "overlay"))
    assert len(find(silent, grey)) == 1


def test_over_the_film_it_is_the_blend_of_the_served_picture(film, signed):
    drawn = picture(explain.overlay(film, signed, "overlay"))
    wanted = blended(film, resize(signed, film.shape)).astype(int)
    assert len(find(drawn, wanted)) == 1


def test_small_films_are_enlarged_by_a_whole_number(signed):
    film = np.random.default_rng(0).integers(0, 256, (50, 30)).astype("float32") / 255
    drawn = picture(explain.overlay(film, np.zeros((2, 2)), "overlay"))
    grey = np.repeat(np.round(film * 255).astype(int)[..., None], 3, axis=2)
    assert len(find(drawn, grey.repeat(8, axis=0).repeat(8, axis=1))) == 1


def test_signs_have_colours_that_are_symmetric_about_zero():
    film = np.zeros((400, 400), np.float32)
    quarters = np.float32([[1, -1], [0, -0.5]]).repeat(200, axis=0).repeat(200, axis=1)
    drawn = picture(explain.overlay(film, quarters, "side_by_side"))
    panel = np.zeros((400, 400, 3), int)
    panel[:200, :200], panel[:200, 200:], panel[200:, :200] = RED, BLUE, WHITE
    panel[200:, 200:] = (np.add(WHITE, BLUE) / 2).astype(int)
    (corner,) = find(drawn, panel, within=3)
    assert corner[1] > 400, "beside the film"


def test_maps_without_negative_values_start_at_white():
    film = np.zeros((400, 400), np.float32)
    halves = np.float32([[0, 1]]).repeat(200, axis=1).repeat(400, axis=0)
    figure = explain.overlay(film, halves)
    panel = np.full((400, 400, 3), WHITE)
    panel[:, 200:] = RED
    assert find(picture(figure), panel)
    assert [text.get_text() for text in figure.axes[-1].get_yticklabels()] == ["0", "1"]


def test_the_colour_bar_is_in_the_map_s_own_units(film, signed):
    figure = explain.overlay(film, signed, title="grad_cam for lateral")
    assert [text.get_text() for text in figure.axes[-1].get_yticklabels()] == ["-2", "0", "2"]
    assert [text.get_text() for text in figure.texts] == ["grad_cam for lateral"]
    scaled = explain.overlay(film, signed, scale=8.0)
    assert [text.get_text() for text in scaled.axes[-1].get_yticklabels()] == ["-8", "0", "8"]


def test_contours_lie_where_the_map_crosses_them(film):
    ramp = np.linspace(-1, 1, 300, dtype="float32")[None].repeat(410, axis=0)
    figure = explain.overlay(film, ramp, "contour")
    (lines,) = figure.axes[0].collections
    np.testing.assert_allclose(lines.levels, [-0.75, -0.5, -0.25, 0.25, 0.5, 0.75])
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        np.testing.assert_allclose(path.vertices[:, 0], (level + 1) / 2 * 299, atol=0.01)
    assert not explain.overlay(film, np.zeros((3, 3)), "contour").axes[0].collections


@pytest.mark.parametrize("style", ["side_by_side", "overlay", "contour"])
@pytest.mark.parametrize("colours", ["bwr", "viridis"])
def test_matplotlib_s_own_colours(film, signed, style, colours):
    assert picture(explain.overlay(film, signed, style, colours)).shape[0] > 410


def test_channels_are_summed_and_a_film_may_have_one(film, signed):
    one = picture(explain.overlay(film, signed, "overlay"))
    parts = np.stack([3 * signed, -2 * signed], axis=-1)
    np.testing.assert_array_equal(picture(explain.overlay(film[..., None], parts, "overlay")), one)


@pytest.mark.parametrize(("given", "wanted"), [((3, 5), (10, 12)), ((7, 7), (224, 200)), ((9, 9), (4, 9))])
def test_maps_are_resized_as_tensorflow_resizes(given, wanted):
    values = np.random.default_rng(0).normal(size=given).astype("float32")
    expected = tf.image.resize(values[..., None], wanted)[..., 0]
    np.testing.assert_allclose(resize(values, wanted), expected, atol=1e-5)


def test_no_window_is_opened(film, signed):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    explain.overlay(film, signed)
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"style": "fancy"}, "unknown style 'fancy'; the known ones are: side_by_side, overlay, contour"),
        ({"colours": "rainbows"}, "unknown matplotlib colour map 'rainbows'"),
        ({"opacity": 2}, r"opacity must be in \[0, 1\], got 2"),
        ({"scale": 0}, "scale must be a positive number, got 0"),
        (
            {"film": np.zeros((2, 4, 4, 1))},
            r"expected a film .* got \(2, 4, 4, 1\) and \(2, 2\); draw the films",
        ),
        ({"heatmap": np.zeros(3)}, r"got \(4, 4\) and \(3,\)"),
        ({"heatmap": np.full((2, 2), np.nan)}, "the map holds values that are not finite"),
        ({"film": np.full((4, 4), 255.0)}, r"film pixels in \[0, 1\], got 255 to 255; read films with"),
    ],
)
def test_wrong_input(change, sentence):
    arguments = {"film": np.zeros((4, 4)), "heatmap": np.ones((2, 2)), **change}
    with pytest.raises(ValueError, match=sentence) as error:
        explain.overlay(**arguments)
    assert "\n" not in str(error.value)
