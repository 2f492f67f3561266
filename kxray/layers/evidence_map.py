"""What a model of one or several voting stages saw for each label, place by place."""

import keras
from keras import ops

from kxray.layers.disease_attention import DiseaseAttention
from kxray.layers.layer_relevance import LayerRelevance
from kxray.layers.similarity_align import SimilarityAlign
from kxray.layers.similarity_sampler import SimilaritySampler
from kxray.layers.symbolic import inputs_of, made_by, made_with


class EvidenceMap(keras.layers.Layer):
    """Combines the evidence of stages: e_c = sum_s pi_sc up(e_sc), on the grid of the largest stage.

    Weightless: it reads the weights of the layers that it is given, as they are when it is called.

    Args:
        votes: the S layers that give the stages' logits: `DiseaseAttention`, or linear Dense layers on
            globally averaged features.
        relevance: the `LayerRelevance` over their logits; None for one stage.

    Call arguments:
        stages: list of S tensors (N, h_s, w_s, .): the evidence of a DiseaseAttention, or the features that
            are averaged before a Dense layer.

    Returns:
        float32 (N, h, w, L), signed: its mean over the places, plus `bias()`, is the logit (of several stages
        where the sides of their grids divide each other; resizing keeps the mean then).
    """

    def __init__(self, votes, relevance=None, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        # In functions, so that Keras does not take their weights for those of this layer.
        self._votes, self._relevance = (lambda: votes), (lambda: relevance)
        self.built = True

    def call(self, stages):
        maps = [_evidence(vote, stage) for vote, stage in zip(self._votes(), stages, strict=True)]
        if self._relevance() is None:
            return maps[0]
        size = max((tuple(one.shape[1:3]) for one in maps), key=lambda grid: grid[0] * grid[1])
        weights = ops.cast(self._relevance().relevance(), "float32")
        return sum(weights[stage] * resized(one, size) for stage, one in enumerate(maps))

    def bias(self):
        """What the logits are where there is no evidence: float32 (L,)."""
        biases = ops.stack([ops.cast(vote.bias, "float32") for vote in self._votes()])
        relevance = self._relevance()
        return biases[0] if relevance is None else ops.sum(relevance.relevance() * biases, axis=0)

    def compute_output_shape(self, input_shape):
        count, height, width = max((shape[:3] for shape in input_shape), key=lambda shape: shape[1])
        return (count, height, width, self._votes()[0].bias.shape[0])


def evidence_outputs(model) -> dict:
    """The symbolic tensors of a model that its evidence is made of.

    Args:
        model: functional model of one film (N, H, W, C), which may begin with a `SimilarityAlign`, and whose
            logits, before a last activation, are those of `DiseaseAttention` layers or of linear Dense layers
            on globally averaged features, one or several with a `LayerRelevance` over them.

    Returns:
        dict: `logits` (N, L); `evidence_aligned` float32 (N, h, w, L), of `EvidenceMap`; and where the model
        aligns its films `aligned` (N, H, W, 1), `pose` (N, 4) and `confidence` (N,).

    Raises:
        ValueError: films of unknown size, or other layers; the line names the one in the way.
    """
    if None in model.inputs[0].shape[1:]:
        raise ValueError(f"evidence needs films of one size, model {model.name!r} takes any")
    logits, votes, relevance = _head(model)
    layer = EvidenceMap([made_by(vote) for vote in votes], relevance, name="evidence_aligned")
    stages = [_stage(model, vote) for vote in votes]
    return {"logits": logits, "evidence_aligned": layer(stages), **(alignment(model) or {})}


def attends_or_aligns(model) -> bool:
    """Whether a model has evidence of `DiseaseAttention`, or of films that it aligned first."""
    _, votes, _ = _head(model)
    if all(isinstance(made_by(vote), DiseaseAttention) for vote in votes):
        return True
    try:
        return alignment(model) is not None and all(_stage(model, vote) is not None for vote in votes)
    except ValueError:
        return False


def alignment(model) -> dict | None:
    """The symbolic outputs `aligned`, `pose`, `confidence` of a model's SimilarityAlign; None without one."""
    waiting, seen = [*model.outputs], set()
    while waiting:
        tensor = waiting.pop()
        if isinstance(made_by(tensor), SimilarityAlign):
            # Keras keeps the tensors of a dict without their names.
            names = {4: "aligned", 2: "pose", 1: "confidence"}
            return {names[len(given.shape)]: given for given in made_with(tensor)}
        if id(tensor) not in seen:
            seen.add(id(tensor))
            waiting += inputs_of(tensor)
    return None


def on_film(maps, pose, film_size, size=None):
    """Brings maps from the aligned frame to the film's.

    They are first resized to the film's grid, which keeps them whole up to the frame's edge; beyond it, where
    the model did not look, the result is 0.

    Args:
        maps: float (N, h, w, C), in the aligned frame.
        pose: float (N, 4), of `SimilarityAlign`; None: the film was not aligned.
        film_size: (H, W), of the model's input.
        size: (H', W') of the result, or None for (H, W).

    Returns:
        float (N, H', W', C).
    """
    size = tuple(film_size) if size is None else tuple(size)
    if pose is None:
        return resized(maps, size)
    return SimilaritySampler(inverse=True, size=size)([resized(maps, film_size), pose])


def resized(maps, size):
    """(N, h, w, C) -> (N, h', w', C), bilinearly with half-pixel centres."""
    if tuple(maps.shape[1:3]) == tuple(size):
        return maps
    return ops.image.resize(maps, tuple(size), interpolation="bilinear")


def _head(model):
    """(logits, the logits of the stages, the LayerRelevance over them or None), symbolic."""
    logits = model.outputs[0]
    if isinstance(made_by(logits), (keras.layers.Activation, keras.layers.Softmax)):
        (logits,) = inputs_of(logits)
    relevance = made_by(logits)
    if isinstance(relevance, LayerRelevance):
        return logits, inputs_of(logits), relevance
    return logits, [logits], None


def _evidence(vote, stage):
    stage = ops.cast(stage, "float32")
    return (
        stage if isinstance(vote, DiseaseAttention) else ops.matmul(stage, ops.cast(vote.kernel, "float32"))
    )


def _stage(model, vote):
    """What `EvidenceMap` takes of the stage that gave these logits."""
    layer = made_by(vote)
    if isinstance(layer, DiseaseAttention):
        (evidence,) = [given for given in made_with(vote) if len(given.shape) == 4]
        return evidence
    linear = isinstance(layer, keras.layers.Dense) and layer.activation is keras.activations.linear
    if linear and layer.use_bias:
        (pooled,) = inputs_of(vote)
        if isinstance(made_by(pooled), keras.layers.GlobalAveragePooling2D):
            return inputs_of(pooled)[0]
        layer = made_by(pooled)
    raise ValueError(
        "evidence needs logits of DiseaseAttention, or of a linear Dense layer on GlobalAveragePooling2D; in "
        f"model {model.name!r} {layer.name!r}, {type(layer).__name__}, is in the way; take grad_cam"
    )
