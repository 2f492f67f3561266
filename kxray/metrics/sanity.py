"""Does a map depend on the model and on the class at all? (Adebayo et al., 2018)

A method whose maps survive when the weights are random explains the film's edges, not the model.
"""

import zlib
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

KINDS = ("spearman", "absolute_spearman", "ssim")


class WeightRandomisation(NamedTuple):
    """Names of the K layers in the order they lost their weights, and similarities: kind -> float64 (K, N).

    Row k compares the maps of the model whose layers 0 ... k are random with the maps of the model as given.
    """

    layers: list
    similarity: dict


def weight_randomisation(model, explain, images, stops=None, similarity=None, seed=0):
    """The model parameter randomisation test: cascading, from the output down.

    Layer after layer is given fresh weights by its own initialisers. It is done to a clone: the model stays
    as it is.

    Args:
        model: keras.Model, functional or Sequential; the layers of nested models are taken one by one.
        explain: function (model, images) -> maps (N, h, w) or (N, h, w, C), channels summed. It must read the
            weights anew on each call, and explain the same unit on each: give it fixed targets.
        images: float (N, H, W, C).
        stops: names of layers after which maps are compared; all those above are randomised too. By default
            every layer that has weights. A layer of a nested model is called "nested/layer".
        similarity: function (maps, others) -> dict of float (N,); by default `map_similarity`.
        seed: of the fresh weights.

    Returns:
        WeightRandomisation.

    Raises:
        ValueError: a model that cannot be cloned or has no weights, or stops that it does not have.
    """
    similarity = map_similarity if similarity is None else similarity
    names = [name for name, _ in layers_from_the_top(model)]
    if not names:
        raise ValueError(f"model {model.name!r} has no weights to randomise")
    if stops is not None and not len(stops):
        raise ValueError("stops names no layer; leave it out to compare after every one")
    unknown = [name for name in (() if stops is None else stops) if name not in names]
    if unknown:
        raise ValueError(
            f"model {model.name!r} has no layer with weights {unknown[0]!r}; it has: {', '.join(names)}"
        )
    clone = _clone(model)
    original = explain(clone, images)
    done, rows = [], []
    for name, layer in layers_from_the_top(clone):
        randomise(layer, seed)
        if stops is None or name in stops:
            done.append(name)
            rows.append(similarity(original, explain(clone, images)))
            if len(done) == len(names if stops is None else set(stops)):
                break
    return WeightRandomisation(done, {kind: np.stack([row[kind] for row in rows]) for kind in rows[0]})


def randomise(layer, seed=0) -> None:
    """Gives a built layer fresh weights, made by its own initialisers from `seed` and its name, in place."""
    number = zlib.crc32(f"{seed} {layer.name}".encode())
    shapes = layer.get_build_config()
    if shapes is None:
        raise ValueError(f"layer {layer.name!r} ({type(layer).__name__}) does not say how it was built")
    fresh = type(layer).from_config(_seeded(layer.get_config(), number))
    fresh.build_from_config(shapes)
    layer.set_weights(fresh.get_weights())


def random_logit(explain, images, targets, num_units, kinds=KINDS, seed=0):
    """How alike the maps of a film are for its own unit and another one, drawn at random (Sixt et al., 2020).

    Maps that are alike say little about the class.

    Args:
        explain: function (images, targets int (N,)) -> maps.
        images: float (N, H, W, C).
        targets: int (N,).
        num_units: of the model, 2 or more.
        kinds: see `map_similarity`; seed: of the other units.

    Returns:
        dict kind -> float64 (N,).
    """
    targets = np.asarray(targets)
    if num_units < 2:
        raise ValueError(f"a random-logit test needs a model of 2 units or more, got {num_units}")
    if targets.shape != (len(images),) or (targets < 0).any() or (targets >= num_units).any():
        raise ValueError(f"expected {len(images)} targets from 0 to {num_units - 1}, got {targets.tolist()}")
    steps = np.random.default_rng(seed).integers(1, num_units, size=len(targets))
    others = ((targets + steps) % num_units).astype(targets.dtype)
    return map_similarity(explain(images, targets), explain(images, others), kinds)


def map_similarity(maps, others, kinds=KINDS):
    """How alike two batches of maps are, in the measures of Adebayo et al. (2018).

    Args:
        maps, others: float (N, h, w) or (N, h, w, C), channels summed; signed and raw.
        kinds: of "spearman" (rank correlation), "absolute_spearman" (of |map|), "ssim" (structural
            similarity, each map divided by its largest absolute value, window 7 or what fits) and "hog"
            (correlation of histograms of oriented gradients, cells of a fourteenth of the film).

    Returns:
        dict kind -> float64 (N,) in [-1, 1], 1 for maps that are equal up to a positive factor; NaN where one
        of the two is constant or not finite.
    """
    maps, others = _maps(maps), _maps(others)
    if maps.shape != others.shape:
        raise ValueError(f"expected two batches of maps of one shape, got {maps.shape} and {others.shape}")
    measures = {
        "spearman": _spearman,
        "absolute_spearman": lambda a, b: _spearman(np.abs(a), np.abs(b)),
        "ssim": _ssim,
        "hog": _hog,
    }
    if unknown := [kind for kind in kinds if kind not in measures]:
        raise ValueError(f"no similarity {unknown[0]!r}; known: {', '.join(measures)}")
    return {
        kind: np.array(
            [
                measures[kind](a, b) if _tells(a) and _tells(b) else np.nan
                for a, b in zip(maps, others, strict=True)
            ]
        )
        for kind in kinds
    }


def layers_from_the_top(model):
    """Names and layers that have learned weights, from the output to the input, nested models included."""
    import keras

    layers = []
    for layer in reversed(model.layers):
        if isinstance(layer, keras.Model):
            layers += [(f"{layer.name}/{name}", inner) for name, inner in layers_from_the_top(layer)]
        # The statistics of a Normalization layer belong to the films, not to what was learned.
        elif layer.weights and not isinstance(layer, keras.layers.Normalization):
            layers.append((layer.name, layer))
    return layers


def _clone(model):
    import keras

    try:
        clone = keras.models.clone_model(model)
    except (ValueError, TypeError, NotImplementedError) as problem:
        raise ValueError(
            f"model {model.name!r} cannot be cloned; its layers need get_config: {problem}"
        ) from problem
    clone.set_weights(model.get_weights())
    return clone


def _seeded(config, number):
    """A layer's configuration with every seed in it replaced, those of its initialisers above all."""
    if isinstance(config, dict):
        # Two initialisers of one layer must not draw alike.
        return {
            key: number % 2**31 if key == "seed" else _seeded(value, zlib.crc32(f"{number} {key}".encode()))
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_seeded(value, number + place) for place, value in enumerate(config))
    return config


def _maps(maps):
    maps = np.asarray(maps)
    if maps.ndim not in (3, 4) or 0 in maps.shape:
        raise ValueError(f"expected maps (N, h, w) or (N, h, w, C), got {maps.shape}")
    maps = maps.astype(float)
    return maps.sum(axis=3) if maps.ndim == 4 else maps


def _tells(map_):
    return np.isfinite(map_).all() and np.ptp(map_) > 0


def _spearman(a, b):
    return _correlation(rankdata(a), rankdata(b))


def _correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a**2).sum() * (b**2).sum())
    return np.clip((a * b).sum() / spread, -1, 1) if spread > 0 else np.nan


def _ssim(a, b):
    from skimage.metrics import structural_similarity

    side = min(7, *a.shape)
    side -= 1 - side % 2
    if side < 3:
        return np.nan
    return structural_similarity(a / np.abs(a).max(), b / np.abs(b).max(), win_size=side, data_range=2.0)


def _hog(a, b):
    from skimage.feature import hog

    cell = [max(1, size // 14) for size in a.shape]
    per_block = [min(3, size // step) for size, step in zip(a.shape, cell, strict=True)]
    a, b = (
        hog(map_ / np.abs(map_).max(), pixels_per_cell=cell, cells_per_block=per_block) for map_ in (a, b)
    )
    return _correlation(a, b)
