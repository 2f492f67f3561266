"""Aligned films, and diseases that are looked for where they are likely: DenseNet with probability masks."""

import keras
from keras import layers, ops

from kxray.layers import evidence_map
from kxray.layers.disease_attention import DiseaseAttention
from kxray.layers.layer_relevance import LayerRelevance
from kxray.models import _backbones, alexnet

MASKING = ("masks", "uniform", "none")
MASK_SIZE = 64


def build(
    num_labels=8,
    image_size=(256, 256),
    backbone="densenet121",
    taps=1,
    masking="masks",
    masks=None,
    align=True,
    align_size=64,
    align_width=16,
    align_steps=2,
    floor=0.1,
    head="sigmoid",
    batch_norm_momentum=0.9,
) -> keras.Model:
    """Builds film -> alignment -> stages of a backbone -> attention guided by disease masks -> probabilities.

    Args:
        num_labels: number of diseases, at least 1.
        image_size: (height, width) of the input in pixels; of masking "masks" square, as masks are.
        backbone: one with stages: "densenet121" and the others of `build("multiscale_densenet")`, or
            "small_densenet", which two processor cores train.
        taps: how many of the last stages look for the diseases, or their names. Several are combined by
            `kxray.layers.LayerRelevance`.
        masking: "masks": `kxray.layers.DiseaseAttention` with probability masks; "uniform": the same without
            a word from the masks; "none": global average pooling and a dense layer.
        masks: float (num_labels, m, m) in [0, 1], for masking "masks"; None: ones, until `set_masks`.
        align: whether a `kxray.layers.SimilarityAlign` comes first. It is not trained here: its weights come
            from a trained aligner, `kxray.models.copy_aligner`.
        align_size, align_width, align_steps: its `size` (side in pixels of the copy that it looks at),
            `width` and `steps`, those of the aligner that it is given.
        floor: what masks leave of a place where the disease never is, in (0, 1].
        head: "sigmoid" for diseases that may occur together, "softmax" for classes that exclude each other.
        batch_norm_momentum: see `build("multiscale_densenet")`.

    Returns:
        keras.Model from float (N, height, width, 1) in [0, 1], bone bright, to probabilities float32
        (N, num_labels). Layers: `align`; those of the backbone; of every tapped stage s `attend_s`, or
        `gap_s` and `logits_s` with masking "none"; `layer_relevance` over several; `probabilities`. Random
        weights; `kxray.models.with_evidence` makes a model that shows what it saw.

    Raises:
        ValueError: an unknown backbone, stage, masking or head, masks that do not fit, or films that are
            smaller than the backbone takes or not square.
    """
    height, width = _backbones.check_image_size(backbone, image_size)
    stages = _backbones.choose_stages(backbone, taps)
    alexnet.check_head(head, num_labels)
    if masking not in MASKING:
        raise ValueError(f"masking must be one of {', '.join(MASKING)}, got {masking!r}")
    if masks is not None and masking != "masks":
        raise ValueError(f"masks are for masking='masks', got masking={masking!r}")
    if masking == "masks":
        _check_square(height, width)
    if not 0 <= batch_norm_momentum < 1:
        raise ValueError(f"batch_norm_momentum must be in [0, 1), got {batch_norm_momentum}")
    film = x = keras.Input((height, width, 1), name="film")
    if align:
        x = _aligned(film, align_size, align_width, align_steps)
    tapped = _backbones.features(backbone, x, stages)
    if masking == "none":
        votes = [_pool(features, stage, num_labels) for stage, features in tapped.items()]
    else:
        votes = [_attend(features, stage, num_labels, floor) for stage, features in tapped.items()]
    # Float32 under any dtype policy: half-precision probabilities saturate at ordinary confidence.
    x = LayerRelevance(dtype="float32", name="layer_relevance")(votes) if len(votes) > 1 else votes[0]
    x = layers.Activation(head, dtype="float32", name="probabilities")(x)
    model = keras.Model(film, x, name="masked_densenet")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = batch_norm_momentum
    if masks is not None:
        set_masks(model, masks)
    return model


def set_masks(model, masks) -> None:
    """See `kxray.models.set_masks`."""
    maps = getattr(masks, "maps", masks)
    attending = [layer for layer in model.layers if isinstance(layer, DiseaseAttention)]
    if not attending:
        raise ValueError(f"model {model.name!r} has no DiseaseAttention layer that takes masks")
    _check_square(*model.inputs[0].shape[1:3])
    for layer in attending:
        layer.set_masks(maps)


def with_evidence(model, size=None) -> keras.Model:
    """See `kxray.models.with_evidence`."""
    found = evidence_map.evidence_outputs(model)
    film, maps = model.inputs[0], found["evidence_aligned"]
    pose = found.get("pose")
    size = tuple(maps.shape[1:3]) if size is None else size
    count = ops.zeros_like(found["logits"][:, :1])
    return keras.Model(
        film,
        {
            "probabilities": model.outputs[0],
            "logits": found["logits"],
            "evidence": evidence_map.on_film(maps, pose, film.shape[1:3], size),
            "evidence_aligned": maps,
            "aligned": found.get("aligned", film),
            "pose": ops.repeat(count, 4, axis=1) if pose is None else pose,
            "confidence": found["confidence"] if pose is not None else count[:, 0] + 1.0,
        },
        name=f"{model.name}_with_evidence",
    )


def _check_square(height, width):
    # Masks lie in shares of the film's width, in both directions.
    if height != width:
        raise ValueError(
            f"masks take square films, these are {height} x {width} pixels; resize them, or build the model "
            "with masking='uniform' or 'none'"
        )


def _aligned(film, size, width, steps):
    from kxray.layers.similarity_align import SimilarityAlign

    layer = SimilarityAlign(size=size, width=width, steps=steps, dtype="float32", name="align")
    x = layer(film)["aligned"]
    layer.trainable = False
    return x


def _attend(features, stage, num_labels, floor):
    attend = DiseaseAttention(num_labels, floor, mask_size=MASK_SIZE, dtype="float32", name=f"attend_{stage}")
    return attend(features)["logits"]


def _pool(features, stage, num_labels):
    pooled = layers.GlobalAveragePooling2D(name=f"gap_{stage}", dtype="float32")(features)
    return layers.Dense(num_labels, dtype="float32", name=f"logits_{stage}")(pooled)
