"""The film brought upright, centred and to one size: `kxray.layers.SimilarityAlign` as a model."""

import keras

from kxray.layers.similarity_align import SimilarityAlign


def build(image_size=(256, 256), size=64, width=16, steps=2, fill_value=0.0, name="aligner") -> keras.Model:
    """Builds the aligner, which leaves every film as it is until it is trained (`training.fit align`).

    Args:
        image_size: (height, width) of the films in pixels.
        size, width, steps, fill_value: of `kxray.layers.SimilarityAlign`, the layer "align".
        name: the model's name.

    Returns:
        keras.Model from float (N, height, width, 1) in [0, 1], bone bright, to {"aligned", "pose",
        "confidence"}.

    Raises:
        ValueError: an image size that is no (height, width), or what the layer does not take.
    """
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2 or min(image_size) < 32:
        raise ValueError(f"image_size must be (height, width), 32 pixels or more, got {image_size!r}")
    film = keras.Input((*image_size, 1), name="film")
    found = SimilarityAlign(size, width, steps, fill_value, name="align")(film)
    return keras.Model(film, found, name=name)


def check(model, source="model") -> None:
    """Raises ValueError unless a model is an aligner."""
    align = next((layer for layer in model.layers if layer.name == "align"), None)
    if not isinstance(align, SimilarityAlign):
        raise ValueError(
            f"{source}: not an aligner, it has no layer 'align'; train one with python -m training.fit align"
        )


def copy_weights(aligner, model) -> None:
    """Copies the weights of the layer "align" to `model`; see `kxray.models.copy_aligner`."""
    check(aligner, "the aligner")
    check(model, "the model")
    here, there = aligner.get_layer("align"), model.get_layer("align")
    for field in ("size", "width", "steps"):
        if getattr(here, field) != getattr(there, field):
            raise ValueError(
                f"the aligner has {field}={getattr(here, field)}, the model's layer 'align' "
                f"{getattr(there, field)}; build the model with the aligner's"
            )
    there.set_weights(here.get_weights())
    there.fill_value = here.fill_value
