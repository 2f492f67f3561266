"""How well RAP and LRP conserve the logit on real networks: python -m benchmarks.conservation

Random weights, with batch-normalisation statistics of the films themselves; one-channel films, every class.
Expected of RAP: |sum of the map - logit| at most 0.001 |logit|, for every class of every film; a network that
misses that makes the program exit with 1. LRP conserves up to what biases and its epsilon take, so the share
that arrives is printed.
"""

import os

import click
import numpy as np

_LABELS = 4
_LIMIT = 1e-3
_COMPOSITES = ({}, {"composite": "epsilon_plus_flat"}, {"composite": "epsilon_plus", "canonize": "fold"})


@click.command(help=__doc__)
@click.option("--side", default=224, show_default=True, help="Side of the films in pixels.")
@click.option("--films", default=2, show_default=True)
@click.option("--networks", default="view_cnn,densenet121,resnet50,alexnet", show_default=True)
def main(side, films, networks):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from kxray.explain import detailed_explainer

    keras.utils.set_random_seed(0)
    pixels = np.random.default_rng(0).random((films, 8, 8, 1)).astype("float32")
    beyond = []
    for name in networks.split(","):
        model = _network(name, side)
        images = keras.ops.image.resize(pixels, model.input.shape[1:3], "bicubic")
        images = np.clip(keras.ops.convert_to_numpy(images), 0, 1)
        _settle(model, images)
        units = np.repeat(np.arange(model.output.shape[-1]), films).astype("int32")
        repeated = np.tile(images, (model.output.shape[-1], 1, 1, 1))
        apart = np.abs(_arriving(detailed_explainer(model, "rap"), repeated, units) - 1).max()
        # So that NaN is beyond it too.
        if not apart <= _LIMIT:
            beyond.append(name)
        click.echo(f"{name:<12} RAP, largest |sum - logit| / |logit|: {apart:.1e}")
        for options in _COMPOSITES:
            shares = _arriving(detailed_explainer(model, "lrp", **options), repeated, units)
            told = ", ".join(options.values()) or "epsilon_plus"
            click.echo(f"{'':<12} LRP {told}: sum / logit {shares.min():.4g} to {shares.max():.4g}")
    if beyond:
        raise click.ClickException(f"RAP misses the logit by more than {_LIMIT} |logit|: {', '.join(beyond)}")


def _arriving(explain, images, units):
    """Sum of each map over its logit; one film at a time, so that memory stays small."""
    shares = []
    for image, unit in zip(images, units, strict=True):
        found = explain(image[None], np.array([unit]))
        shares.append(float(found["heatmap"].numpy().sum(dtype=float)) / float(found["logits"][0, unit]))
    return np.array(shares)


def _network(name, side):
    from kxray import models

    if name == "view_cnn":
        return models.build("view_cnn")
    return models.build("transfer", backbone=name, num_labels=_LABELS, image_size=(side, side))


def _settle(model, images):
    """Sets every batch normalisation to the statistics of its own input."""
    import keras

    normalising = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalising:
        layer.trainable, layer.momentum = True, 0.0
    model(images, training=True)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.conservation")
