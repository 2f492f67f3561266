"""Class activation maps of several stages, combined with the layer relevance weights of their class."""

import dataclasses

import numpy as np
import tensorflow as tf
from keras import layers

from kxray.explain.graph import called_with, chosen_unit
from kxray.explain.head import with_logits
from kxray.layers.layer_relevance import LayerRelevance


def multiscale_cam(model):
    """Multi-scale CAM (Sedai et al., 2018): M_c = sum_s pi_sc up(CAM_c^s), CAM_c^s = sum_k w_ck^s F_k^s.

    Args:
        model: functional model whose logits are the output of a `kxray.layers.LayerRelevance` over dense
            layers on globally averaged features, such as `kxray.models.build("multiscale_densenet")`.

    Returns:
        Function (images (N, H, W, C), target int32 (N,)) -> dict of float32 tensors: `heatmap` (N, h, w, 1)
        on the grid of the largest stage, `stage_maps` (N, S, h, w), each stage's own CAM on that grid before
        weighting, `relevance_weights` (N, S), and `logits` (N, L); and `stage_names` string (N, S).
        heatmap = sum over S of relevance_weights * stage_maps.

    Raises:
        ValueError: a model without such layers.
    """
    stages = _stages(model)
    run = with_logits(model, *(stage.features for stage in stages))
    relevance = _relevance_layer(model)
    names = tf.constant([stage.name for stage in stages])

    def explain(images, target):
        logits, *features = run(images)
        target = chosen_unit(logits, target)
        grid = _largest_grid(features)
        stage_maps = tf.stack(
            [
                tf.image.resize(tf.gather(_cams(stage, maps), target[:, None], axis=3, batch_dims=1), grid)
                for stage, maps in zip(stages, features, strict=True)
            ],
            axis=1,
        )[..., 0]
        weights = tf.gather(tf.transpose(_weights(relevance)), target)
        return {
            "heatmap": tf.einsum("ns,nshw->nhw", weights, stage_maps)[..., None],
            "stage_maps": stage_maps,
            "relevance_weights": weights,
            "stage_names": tf.tile(names[None], [tf.shape(images)[0], 1]),
            "logits": logits,
        }

    return explain


def reads(model) -> bool:
    """Whether `multiscale_cam` can explain a model: its logits are those of stages, weighted by relevance."""
    try:
        _stages(model)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class MultiscaleCams:
    """Multi-scale CAMs of all classes, with what they are made of.

    The identity behind them: logits[n, c] = sum_s weights[s, c] * (mean of stage_maps[s][n, :, :, c] +
    biases[s, c]).

    Attributes:
        stages: names of the S stages, shallow to deep.
        maps: float32 (N, h, w, L), on the grid of the largest stage; signed and raw.
        stage_maps: S arrays float32 (N, h_s, w_s, L), each on its stage's own grid, before weighting.
        weights: float32 (S, L), the layer relevance weights.
        biases: float32 (S, L), of the stages' dense layers.
        logits: float32 (N, L), before the last activation.
    """

    stages: tuple[str, ...]
    maps: np.ndarray
    stage_maps: tuple[np.ndarray, ...]
    weights: np.ndarray
    biases: np.ndarray
    logits: np.ndarray


def multiscale_cams(model, images) -> MultiscaleCams:
    """Computes the multi-scale CAMs of all classes at once, at about the cost of one forward pass.

    Args:
        model: see `multiscale_cam`.
        images: float array (N, H, W, C), the model's own input.

    Returns:
        MultiscaleCams.
    """
    stages = _stages(model)
    relevance = _relevance_layer(model)
    traced = model.__dict__.setdefault("_kxray_explainers", {}).get("multiscale_cams")
    if traced is None:
        run = with_logits(model, *(stage.features for stage in stages))
        signature = [tf.TensorSpec([None, *model.inputs[0].shape[1:]], tf.float32)]

        @tf.function(input_signature=signature)
        def traced(images):
            logits, *features = run(images)
            cams = [_cams(stage, maps) for stage, maps in zip(stages, features, strict=True)]
            grid, weights = _largest_grid(features), _weights(relevance)
            combined = tf.add_n(
                [tf.image.resize(maps, grid) * weights[index] for index, maps in enumerate(cams)]
            )
            return logits, combined, cams

        model.__dict__["_kxray_explainers"]["multiscale_cams"] = traced
    logits, combined, cams = traced(np.asarray(images, np.float32))
    return MultiscaleCams(
        stages=tuple(stage.name for stage in stages),
        maps=combined.numpy(),
        stage_maps=tuple(maps.numpy() for maps in cams),
        weights=_weights(relevance).numpy(),
        biases=np.stack([np.asarray(stage.vote.bias) for stage in stages]),
        logits=logits.numpy(),
    )


@dataclasses.dataclass(frozen=True)
class _Stage:
    name: str
    vote: layers.Dense
    features: object


def _relevance_layer(model):
    found = [layer for layer in model.layers if isinstance(layer, LayerRelevance)]
    if len(found) != 1:
        raise ValueError(
            f"multiscale_cam needs one LayerRelevance layer, model {model.name!r} has {len(found)}; build it "
            'with kxray.models.build("multiscale_densenet"), or take grad_cam'
        )
    return found[0]


def _stages(model):
    relevance = _relevance_layer(model)
    return [_stage(model, relevance, logits) for logits in called_with(model, relevance)]


def _stage(model, relevance, logits):
    vote = logits._keras_history.operation
    if not isinstance(vote, layers.Dense) or vote.activation.__name__ != "linear" or not vote.use_bias:
        raise ValueError(f"{relevance.name!r} must combine linear Dense layers, {vote.name!r} is none")
    (pooled,) = called_with(model, vote)
    pool = pooled._keras_history.operation
    if not isinstance(pool, layers.GlobalAveragePooling2D):
        raise ValueError(f"{vote.name!r} must follow a GlobalAveragePooling2D, it follows {pool.name!r}")
    (features,) = called_with(model, pool)
    return _Stage(vote.name.removeprefix("logits_"), vote, features)


def _cams(stage, features):
    """Every class's map of one stage: features (N, h, w, K) times the dense kernel (K, L)."""
    return tf.einsum("nhwk,kc->nhwc", tf.cast(features, tf.float32), tf.cast(stage.vote.kernel, tf.float32))


def _weights(relevance):
    return tf.cast(relevance.relevance(), tf.float32)


def _largest_grid(features):
    return max((tuple(maps.shape[1:3]) for maps in features), key=lambda grid: grid[0] * grid[1])
