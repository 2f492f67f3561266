"""Does the score fall where the map says it should? Pixels go in the map's order and films are scored again.

    curves = perturbation_curve(model, images, patch_order(maps, 8), target=1)
    print(aopc(curves).mean())

A `predict` is a keras.Model (its own output is the score: a probability, if it ends so) or any function from
float32 images (n, H, W, C) to scores (n,) or (n, L); for logits give a function that returns logits.
"""

from itertools import islice
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kxray.metrics.replacement import (
    flat_maps,
    fraction_order,
    patch_order,
    pixel_order,
    positive_count,
    substrate_of,
)


def perturbed_scores(predict, images, orders, substrate="minimum", batch_size=32, alone=False):
    """Scores of every unit while films lose pixel after pixel: `batch_size` films are held at a time.

    Args:
        predict: keras.Model or function, see above.
        images: float (N, H, W, C).
        orders: int (N, H, W), or (N, H, W, C) where channels go one by one: the step at which a value is
            replaced, from 1 on, 0 for never; of `pixel_order`, `patch_order`, `fraction_order` or your own.
        substrate: see `substrate_of`.
        batch_size: films that the model sees at once.
        alone: step k replaces its own pixels only, and gives back those before it.

    Returns:
        float64 (N, K + 1, L): scores of the whole film, then after each of the K steps.

    Raises:
        ValueError: shapes that do not fit, or scores that are not (n,) or (n, L).
    """
    images, orders = _images(images), np.asarray(orders)
    if orders.shape == images.shape[:3]:
        orders = orders[..., None]
    if orders.shape[:3] != images.shape[:3] or orders.shape[3:] not in ((1,), images.shape[3:]):
        raise ValueError(f"expected orders (N, H, W) of the images {images.shape}, got {orders.shape}")
    steps = int(orders.max()) + 1

    def films():
        for image, order in zip(images, orders, strict=True):
            values_of = (-1, image.shape[2] if order.shape[2] == 1 else 1)
            replacement = substrate_of(image, substrate).reshape(values_of)
            current = image.copy().reshape(values_of)
            yield image
            for places in _places_of_steps(order, steps):
                kept = current[places]
                current[places] = replacement[places]
                yield current.reshape(image.shape).copy()
                if alone:
                    current[places] = kept

    return _in_batches(predict, films(), batch_size).reshape(len(images), steps, -1)


def perturbation_curve(predict, images, orders, target=None, substrate="minimum", batch_size=32):
    """The score of one unit while a film loses pixel after pixel.

    Args:
        predict, images, orders, substrate, batch_size: see `perturbed_scores`.
        target: the unit, an int or one a film; by default the one that scores highest on the whole film.

    Returns:
        float64 (N, K + 1): score of the whole film, then after each step.
    """
    return _of_target(perturbed_scores(predict, images, orders, substrate, batch_size), target)


def aopc(curves):
    """Area over the perturbation curve of each film: 1 / (K + 1) sum_{k=0..K} f_0 - f_k (Samek et al., 2017).

    The term k = 0, which is zero, counts in the mean, as in the paper. High is good where the most relevant
    goes first; AOPC most-first minus AOPC least-first judges both.

    Args:
        curves: float (N, K + 1), of `perturbation_curve`.

    Returns:
        float64 (N,); the paper's figure is their mean.
    """
    curves = _curves(curves)
    return (curves[:, :1] - curves).mean(axis=1)


def area_under(curves, normalised=True):
    """Trapezoid area under each curve: over a width of 1, or over the number of steps.

    Args:
        curves: float (N, K + 1), K at least 1.
        normalised: (sum - first / 2 - last / 2) / K (Petsiuk et al., 2018); otherwise not divided by K.

    Returns:
        float64 (N,).
    """
    curves = _curves(curves)
    area = curves.sum(axis=1) - (curves[:, 0] + curves[:, -1]) / 2
    return area / (curves.shape[1] - 1) if normalised else area


class RegionPerturbation(NamedTuple):
    """Curves (N, K + 1) most relevant first and least relevant first, and their areas over the curve (N,)."""

    most_first: np.ndarray
    least_first: np.ndarray
    aopc_most_first: np.ndarray
    aopc_least_first: np.ndarray

    @property
    def gap(self):
        """AOPC most first minus least first (N,): how well the map tells the two apart; 0 for chance."""
        return self.aopc_most_first - self.aopc_least_first


def region_perturbation(predict, images, maps, target=None, patch=8, substrate="minimum", batch_size=32):
    """Patches go until none is left, most relevant first and least relevant first (Samek et al., 2017).

    Args:
        predict, images, target, substrate, batch_size: see `perturbation_curve`.
        maps: float (N, H, W) or (N, H, W, C), signed and raw, on the films' grid.
        patch: side in pixels.

    Returns:
        RegionPerturbation.
    """
    images = _images(images)
    maps = _on_grid(maps, images)
    curves = [
        perturbation_curve(
            predict, images, patch_order(maps, patch, ascending), target, substrate, batch_size
        )
        for ascending in (False, True)
    ]
    return RegionPerturbation(*curves, *(aopc(curve) for curve in curves))


def deletion(predict, images, maps, target=None, pixels_per_step=None, substrate="zero", batch_size=32):
    """The most relevant pixels go first: with a good map the score falls fast (Petsiuk et al., 2018).

    With the substrate "minimum" this is the pixel flipping of Bach et al. (2015).

    Args:
        predict, images, target, substrate, batch_size: see `perturbation_curve`.
        maps: float (N, H, W) or (N, H, W, C), signed and raw, on the films' grid.
        pixels_per_step: by default W.

    Returns:
        (curves float64 (N, K + 1), areas under them float64 (N,); low is good).
    """
    images = _images(images)
    orders = pixel_order(_on_grid(maps, images), pixels_per_step)
    curves = perturbation_curve(predict, images, orders, target, substrate, batch_size)
    return curves, area_under(curves)


def insertion(predict, images, maps, target=None, pixels_per_step=None, substrate="blur", batch_size=32):
    """The most relevant pixels come first: with a good map the score rises fast (Petsiuk et al., 2018).

    Args: as `deletion`; the films start as their substrate.

    Returns:
        (curves float64 (N, K + 1), areas under them float64 (N,); high is good).
    """
    images = _images(images)
    orders = pixel_order(_on_grid(maps, images), pixels_per_step)
    # From the substrate to the film with most relevant first is the way back with the least relevant first.
    orders = np.where(orders > 0, orders.max() + 1 - orders, 0)
    scores = perturbed_scores(predict, images, orders, substrate, batch_size)
    curves = _of_target(scores, target)[:, ::-1]
    return curves, area_under(curves)


class RelevancePerturbation(NamedTuple):
    """Films still decided right, bool (N, K); scores of their true unit (N, K); accuracy (K,); its area."""

    right: np.ndarray
    scores: np.ndarray
    accuracy: np.ndarray
    area: float


def negative_perturbation(
    predict, images, maps, target, threshold=None, substrate="zero", batch_size=32
) -> RelevancePerturbation:
    """Accuracy while 10, 20 ... 90% of the film, the least relevant pixels first, are replaced.

    What a map calls irrelevant may go without harm: a large area under the accuracy is good (Chefer et al.,
    2021; the negative relevance perturbation of Nam et al., 2020). For the positive test, where the most
    relevant goes first and a small area is good, give `-maps`.

    Args:
        predict, images, substrate, batch_size: see `perturbed_scores`. "zero" is 0 in the images' own units.
        maps: float (N, H, W) or (N, H, W, C), signed and raw, on the films' grid.
        target: the true unit, an int or one a film.
        threshold: by default a film is right where its true unit scores highest. With a threshold, where the
            true unit scores above it: for sigmoid units, one or many.

    Returns:
        RelevancePerturbation over the nine fractions of `FRACTIONS`; area is the trapezoid area under the
        accuracy over a width of 1, in [0, 1].
    """
    images = _images(images)
    orders = fraction_order(_on_grid(maps, images))
    scores = perturbed_scores(predict, images, orders, substrate, batch_size)[:, 1:]
    if threshold is None and scores.shape[2] == 1:
        raise ValueError("a model of one unit needs a threshold (0.5 for a probability, 0 for a logit)")
    chosen = _of_target(scores, target)
    if threshold is None:
        right = scores.argmax(axis=2) == _units(scores, target)[:, None]
    else:
        right = chosen > threshold
    accuracy = right.mean(axis=0)
    return RelevancePerturbation(right, chosen, accuracy, float(area_under(accuracy[None])[0]))


def faithfulness_estimate(
    predict, images, maps, target=None, pixels_per_step=None, substrate="minimum", batch_size=32
):
    """Correlation of the relevance of groups of pixels with what the score loses without them.

    Groups are taken in the order of relevance, each alone (Alvarez-Melis & Jaakkola, 2018).

    Args: as `deletion`.

    Returns:
        float64 (N,): Pearson correlation in [-1, 1]; NaN where all groups are alike.
    """
    images = _images(images)
    maps = _on_grid(maps, images)
    orders = pixel_order(maps, pixels_per_step)
    curves = _of_target(perturbed_scores(predict, images, orders, substrate, batch_size, alone=True), target)
    steps = range(1, curves.shape[1])
    sums = [ndimage.sum_labels(map_, order, steps) for map_, order in zip(maps, orders, strict=True)]
    return _pearson(np.array(sums), curves[:, :1] - curves[:, 1:])


def faithfulness_correlation(predict, images, maps, target=None, draws=100, seed=0, batch_size=32):
    """As `faithfulness_estimate`, over random sets of W pixels set to the minimum (Bhatt et al., 2020).

    Args:
        predict, images, maps, target, batch_size: as `deletion`.
        draws: number of random sets; seed: of the draws.

    Returns:
        float64 (N,): Pearson correlation in [-1, 1]; NaN where all sets are alike.
    """
    images = _images(images)
    maps = _on_grid(maps, images)
    films, height, width = maps.shape
    size, draws = min(width, height * width), positive_count(draws, "draws")
    random = np.random.default_rng(seed)
    sets = [[random.permutation(height * width)[:size] for _ in range(draws)] for _ in range(films)]

    def with_sets_gone():
        for image, its_sets in zip(images, sets, strict=True):
            yield image
            for places in its_sets:
                gone = image.reshape(height * width, -1).copy()
                gone[places] = image.min()
                yield gone.reshape(image.shape)

    scores = _in_batches(predict, with_sets_gone(), batch_size).reshape(films, draws + 1, -1)
    curves = _of_target(scores, target)
    flat = maps.reshape(films, -1)
    sums = (
        np.take_along_axis(flat, np.reshape(sets, (films, -1)), axis=1)
        .reshape(films, draws, size)
        .sum(axis=2)
    )
    return _pearson(sums, curves[:, :1] - curves[:, 1:])


def traced_predict(model):
    """A function from images (n, H, W, C) to the model's output as an array, traced once for any n.

    It is kept with the model: tracing a deep network takes longer than running it on a few hundred films.
    """
    import tensorflow as tf

    if "_kxray_predict" not in model.__dict__:
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ValueError(
                f"expected a model of one input and one output, {model.name!r} has {len(model.inputs)} and "
                f"{len(model.outputs)}; give a function of the images that returns the scores"
            )
        signature = [tf.TensorSpec([None, *model.inputs[0].shape[1:]], tf.float32)]
        traced = tf.function(lambda images: model(images, training=False), input_signature=signature)
        model.__dict__["_kxray_predict"] = lambda images: traced(tf.cast(images, tf.float32)).numpy()
    return model.__dict__["_kxray_predict"]


def _places_of_steps(order, steps):
    """For each step from 1 on, the flat indices of what it replaces."""
    # Small integers sort in linear time.
    order = order.astype(np.int16 if steps <= np.iinfo(np.int16).max else np.int32).ravel()
    places = np.argsort(order, kind="stable")
    ends = np.searchsorted(order[places], np.arange(1, steps + 1))
    return (places[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True))


def _in_batches(predict, films, batch_size):
    """Scores (n, L) of as many films as come, `batch_size` at a time."""
    batch_size, scores, films = positive_count(batch_size, "batch_size"), [], iter(films)
    while batch := [*islice(films, batch_size)]:
        scores.append(_scores(predict, np.stack(batch)))
    return np.concatenate(scores)


def _scores(predict, batch):
    function = (
        traced_predict(predict)
        if hasattr(predict, "trainable_variables") and hasattr(predict, "inputs")
        else predict
    )
    scores = np.asarray(function(batch), dtype=np.float64)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or len(scores) != len(batch):
        raise ValueError(
            f"predict must give scores ({len(batch)},) or ({len(batch)}, L) of {len(batch)} images, "
            f"got {scores.shape}"
        )
    return scores


def _units(scores, target):
    films, _, units = scores.shape
    if target is None:
        return scores[:, 0].argmax(axis=1)
    target = np.asarray(target)
    if target.shape not in ((), (films,)) or not np.issubdtype(target.dtype, np.integer):
        raise ValueError(f"target must be an int or {films} ints, got {target.dtype} {target.shape}")
    if (target < 0).any() or (target >= units).any():
        raise ValueError(f"target must be units 0 to {units - 1}, got {target.min()} to {target.max()}")
    return np.broadcast_to(target, films)


def _of_target(scores, target):
    return np.take_along_axis(scores, _units(scores, target)[:, None, None], axis=2)[..., 0]


def _pearson(a, b):
    """Correlation (N,) of rows; NaN where one of the two rows is constant."""
    alike = (np.ptp(a, axis=1) == 0) | (np.ptp(b, axis=1) == 0)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    spread[alike | (spread == 0)] = np.nan
    return np.clip((a * b).sum(axis=1) / spread, -1, 1)


def _images(images):
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected images (N, H, W, C), got {images.shape}")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"expected float images as the model takes them, got {images.dtype}")
    return images


def _on_grid(maps, images):
    maps = flat_maps(maps)
    if maps.shape != images.shape[:3]:
        raise ValueError(
            f"expected maps of the images' grid {images.shape[:3]}, got {maps.shape}; stretch them with "
            "kxray.io.resize.resize(), or explain with upsample=True"
        )
    return maps


def _curves(curves):
    curves = np.asarray(curves, dtype=float)
    if curves.ndim != 2 or curves.shape[1] < 2:
        raise ValueError(f"expected curves (N, K + 1) of one step or more, got {curves.shape}")
    return curves
