"""Counterfactuals without a generator: a residual and a mask are searched for each film on its own."""

import dataclasses

import numpy as np
import tensorflow as tf

from kxray.explain import targets as asked
from kxray.explain.counterfactual import (
    Counterfactuals,
    calibrated,
    check_asked,
    check_region,
    in_batches,
    kept_with,
)
from kxray.explain.counterfactual_losses import Weights, decision_logits, film_losses, said_losses
from kxray.explain.head import with_logits

# Adam's numbers (Kingma and Ba, 2015), but for a short memory of squares: slopes shrink as a film gets there.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.9, 1e-8
# A change that costs no less than this share of the best one is no better.
_NO_BETTER = 0.99


@dataclasses.dataclass(frozen=True)
class Search:
    """How a residual and a mask are searched for.

    Args:
        steps: of Adam, at most.
        learning_rate: Adam's, on what tanh and sigmoid are taken of.
        amplitude: largest |r|.
        coarseness: pixels between the nodes of the grid on which r and a are searched; between them they are
            interpolated, so that no noise of single pixels can fool the classifier.
        margin: how far beyond its decision the classifier's calibrated logit is to be pushed.
        patience: a film is done when so many steps have brought no smaller change that gets there.
        start: the mask that the search starts from, in (0, 1).
        batch_size: films at a time; a film's result does not depend on it.

    Raises:
        ValueError: a number out of its range.
    """

    steps: int = 200
    learning_rate: float = 0.05
    amplitude: float = 1.0
    coarseness: int = 4
    margin: float = 1.0
    patience: int = 30
    start: float = 0.1
    batch_size: int = 16

    def __post_init__(self):
        for name in ("steps", "coarseness", "patience", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, low, high in (
            ("learning_rate", 0, np.inf),
            ("amplitude", 0, 1),
            ("margin", 0, np.inf),
            ("start", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")
        if not (0 < self.start < 1 and self.learning_rate > 0 and self.amplitude > 0):
            raise ValueError("learning_rate, amplitude and start must be above 0, and start below 1")


def masked_residual(model, spec, films, targets, *, region=None, weights=None, **options):
    """Searches for the smallest masked change of each film with which a frozen classifier says a target.

    y = clip(x + region a r, 0, 1), with r = amplitude tanh(u) and a = sigmoid(v) of each film on a coarse
    grid, by Adam on the losses of the `counterfactual_gan` without those that take other films: the
    classifier's cross-entropy, what it said of other labels, mean |y - x|, mean and total variation of a.
    Adam's second moment is one of a film, not one of a pixel, which would change all pixels at one pace,
    however little they matter. Once the classifier's logit is `margin` beyond its decision, the change only
    shrinks; left is the least costly change that got there, of films that never do the last one. Films of
    which the classifier says the target already stay as they are.
    (Perturbation by a learned mask: Fong and Vedaldi, 2017, eq. 4; counterfactuals by gradient: Wachter et
    al., 2017, eq. 4.) What is found is what this classifier listens to, and it can be a change that no
    radiologist would know: compare it with that of a GAN, which has seen real films of the target.

    Args:
        model, spec: the classifier, a functional keras.Model and its kxray.ModelSpec; it stays as it is.
        films: float (N, h, w, 1) in [0, 1].
        targets: name or number (of `kxray.explain.targets_of(spec)`) of one target, or one a film.
        region: float or bool (N, h, w, 1) or (h, w, 1): where it is 0, y equals x exactly.
        weights: `kxray.explain.counterfactual_losses.Weights`; adversarial, identity and cycle have no say.
        **options: fields of `Search`, such as steps.

    Returns:
        Counterfactuals; masks are a times `region`, maps |a r| with `region`; steps["steps"] int32 (N,): how
        many were taken.

    Raises:
        ValueError: see `check_asked`; an unknown option, or one out of its range.
    """
    films, numbers = check_asked(spec, films, targets)
    region = check_region(region, films)
    unknown = sorted(set(options) - {field.name for field in dataclasses.fields(Search)})
    if unknown:
        known = ", ".join(field.name for field in dataclasses.fields(Search))
        raise ValueError(f"masked_residual has no option {unknown[0]!r}; its options are: {known}")
    search = Search(**options)
    known = asked.targets_of(spec)
    labels = np.array([known[number].label for number in numbers], np.int32)
    present = np.array([known[number].present for number in numbers], bool)
    weights = weights or Weights()
    key = ("masked_residual", spec.to_json(), search, weights)
    look = kept_with(model, key, lambda: _searcher(model, spec, search, weights))
    found = in_batches(look, (films, region, labels, present), search.batch_size)
    return Counterfactuals(
        films=films,
        counterfactuals=found["film"],
        reference=films,
        masks=found["mask"],
        maps=found["map"][..., 0],
        before=calibrated(found["before"], spec),
        after=calibrated(found["after"], spec),
        targets=numbers,
        steps={"steps": found["steps"]},
    )


def _searcher(model, spec, search, weights):
    """A traced function (films, region, labels, present) -> dict of film, mask, map, before, after, steps."""
    run = with_logits(model)
    height, width = spec.image_size
    grid = tuple(-(-side // search.coarseness) for side in (height, width))
    first_mask = float(np.log(search.start / (1 - search.start)))

    def drawn(parameters, films, region):
        """(y, a) of what is searched for, (N, gh, gw, 2)."""
        fine = tf.image.resize(parameters, (height, width), "bilinear")
        masks = region * tf.sigmoid(fine[..., 1:] + first_mask)
        residuals = search.amplitude * tf.tanh(fine[..., :1])
        return tf.clip_by_value(films + masks * residuals, 0.0, 1.0), masks, residuals

    def improved(step, state, given):
        films, region, before, needed, labels, present = given
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(state["now"])
            changed, masks, _ = drawn(state["now"], films, region)
            (after,) = run(changed)
            said = said_losses(spec, before, after, labels, present)
            there = _beyond(spec, after, labels, present) >= needed
            # What is there already is asked for no more: it only shrinks, until it is there no longer.
            said["classifier"] = tf.where(there, 0.0, said["classifier"])
            change = film_losses(films, changed, masks)
            loss = tf.reduce_sum(weights.total({**said, **change}))
        slopes = tape.gradient(loss, state["now"])
        cost = weights.total({"keep": said["keep"], **change})
        better = there & (cost < state["cost"])
        improved_much = there & (cost < _NO_BETTER * state["cost"])
        waited = tf.where(improved_much, 0, state["waited"] + tf.cast(state["cost"] < np.inf, tf.int32))
        searching = state["searching"] & (waited < search.patience)
        count = tf.cast(step + 1, tf.float32)
        moments = _BETA_1 * state["moments"] + (1 - _BETA_1) * slopes
        squares = _BETA_2 * state["squares"] + (1 - _BETA_2) * tf.reduce_mean(
            slopes**2, axis=(1, 2), keepdims=True
        )
        moved = (moments / (1 - _BETA_1**count)) / (tf.sqrt(squares / (1 - _BETA_2**count)) + _EPSILON)
        return {
            "now": state["now"] - search.learning_rate * moved,
            "moments": moments,
            "squares": squares,
            "best": tf.where((better & state["searching"])[:, None, None, None], state["now"], state["best"]),
            "cost": tf.where(better & state["searching"], cost, state["cost"]),
            "waited": waited,
            "searching": searching,
            "taken": state["taken"] + tf.cast(state["searching"], tf.int32),
        }

    def look(films, region, labels, present):
        (before,) = run(films)
        count = tf.shape(films)[0]
        zeros = tf.zeros([count, *grid, 2])
        state = {
            "now": zeros,
            "moments": zeros,
            "squares": tf.zeros([count, 1, 1, 2]),
            "best": zeros,
            "cost": tf.fill([count], np.float32(np.inf)),
            "waited": tf.zeros([count], tf.int32),
            "searching": tf.fill([count], True),
            "taken": tf.zeros([count], tf.int32),
        }
        # What has the target already needs no change.
        needed = tf.where(_beyond(spec, before, labels, present) >= 0, 0.0, search.margin)
        given = (films, region, before, needed, labels, present)
        _, state = tf.while_loop(
            lambda step, state: (step < search.steps) & tf.reduce_any(state["searching"]),
            lambda step, state: (step + 1, improved(step, state, given)),
            (tf.constant(0), state),
            # Iterations would overlap otherwise, each with the activations of a whole network in memory.
            parallel_iterations=1,
        )
        # Films that never got there are left with their last change.
        reached = tf.math.is_finite(state["cost"])[:, None, None, None]
        changed, masks, residuals = drawn(tf.where(reached, state["best"], state["now"]), films, region)
        (after,) = run(changed)
        return {
            "film": changed,
            "mask": masks,
            "map": masks * tf.abs(residuals),
            "before": before,
            "after": after,
            "steps": state["taken"],
        }

    shape = (height, width, 1)
    signature = [
        *(tf.TensorSpec([None, *shape], tf.float32),) * 2,
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None], tf.bool),
    ]
    return tf.function(look, input_signature=signature)


def _beyond(spec, logits, labels, present):
    """How far calibrated logits are on the wanted side of the classifier's decision, float32 (N,)."""
    decided = decision_logits(spec, logits)
    if spec.task == "multilabel":
        own = tf.gather(decided, labels, axis=1, batch_dims=1)
        return tf.where(present, own, -own)
    if spec.task == "binary":
        return tf.where(labels == 1, decided[:, 0], -decided[:, 0])
    own = tf.gather(decided, labels, axis=1, batch_dims=1)
    others = decided - 1e9 * tf.one_hot(labels, spec.num_labels)
    return own - tf.reduce_max(others, axis=1)
