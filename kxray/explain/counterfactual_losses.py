"""What a counterfactual film should be, in numbers: the losses that all makers of counterfactuals share.

No public paper describes the network of the slides whose "attention GAN with a residual connection" this is;
the terms are the union of the published forms: VA-GAN (Baumgartner et al., 2018), Fixed-Point GAN (Siddiquee
et al., 2019), GANimation (Pumarola et al., 2018) and GANterfactual (Mertes et al., 2022).
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from kxray.explain.head import with_logits
from kxray.explain.targets import targets_of

# Thresholds of 0 and 1 have no logit.
_NEAREST_TO_CERTAIN = 1e-3


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of the terms of the loss; 0 leaves a term out.

    Args:
        adversarial: the discriminator takes the counterfactual for a real film that has the target.
        classifier: the classifier says the target.
        keep: it says of every other label what it said before (multi-label classifiers).
        identity: films that have the target already stay as they are: mean |y - x|, and the mean mask.
        proximity: mean |y - x|.
        sparsity: mean of the attention mask.
        variation: total variation of the attention mask, per pixel.
        cycle: mean |x - what y becomes when it is changed back|.

    Raises:
        ValueError: a weight below 0.
    """

    adversarial: float = 1.0
    classifier: float = 1.0
    keep: float = 1.0
    identity: float = 10.0
    proximity: float = 10.0
    sparsity: float = 0.1
    variation: float = 0.01
    cycle: float = 0.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0:
                raise ValueError(f"weight {name} must be 0 or more, got {value}")

    def total(self, terms):
        """The weighted sum of some of the terms, a dict of scalars or of vectors."""
        return tf.add_n([getattr(self, name) * value for name, value in terms.items()])


class CounterfactualLoss:
    """The terms of the loss that one classifier and the films themselves decide.

    Args:
        model: functional keras.Model from (N, h, w, 1); nothing of it changes.
        spec: its kxray.ModelSpec.
        targets: `kxray.explain.Target`s by number; by default all of the classifier's.
        weights: `Weights`.
    """

    def __init__(self, model, spec, targets=None, weights=None):
        self.spec, self.weights = spec, weights or Weights()
        self.targets = targets_of(spec) if targets is None else tuple(targets)
        # A function, not the model: a GAN that is told this would take its layers for its own.
        self._logits = with_logits(model)
        self._labels = np.array([target.label for target in self.targets], np.int32)
        self._present = np.array([target.present for target in self.targets], bool)

    def terms(self, films, changed, masks, targets) -> dict:
        """The terms of some counterfactuals, film by film.

        Args:
            films, changed, masks: float32 (N, h, w, 1).
            targets: int32 (N,), numbers of `targets`.

        Returns:
            dict of float32 (N,): classifier, keep, proximity, sparsity, variation; see `Weights`.
        """
        before = tf.stop_gradient(self._logits(films)[0])
        labels, present = tf.gather(self._labels, targets), tf.gather(self._present, targets)
        said = said_losses(self.spec, before, self._logits(changed)[0], labels, present)
        return said | film_losses(films, changed, masks)


def decision_logits(spec, logits):
    """Calibrated logits that are 0 where the classifier is about to decide.

    Args:
        spec: kxray.ModelSpec of the classifier.
        logits: float32 (N, units), before the last activation.

    Returns:
        float32 (N, units): divided by the temperature; of a multi-label classifier less the logit of each
        label's threshold.
    """
    scaled = logits / spec.temperature
    if spec.task != "multilabel":
        return scaled
    limits = [
        min(max(spec.threshold(label), _NEAREST_TO_CERTAIN), 1 - _NEAREST_TO_CERTAIN) for label in spec.labels
    ]
    return scaled - tf.constant([math.log(limit / (1 - limit)) for limit in limits], tf.float32)


def said_losses(spec, before, after, labels, present):
    """What the classifier says of counterfactuals, film by film.

    Args:
        spec: kxray.ModelSpec of the classifier.
        before, after: float32 (N, units), its logits of the films and of their counterfactuals.
        labels: int32 (N,), the label that each target is about.
        present: bool (N,), whether the target is that it is there.

    Returns:
        dict of float32 (N,): `classifier`, the cross-entropy of the wanted answer, at `decision_logits`;
        `keep`, the mean Kullback-Leibler divergence of all other labels of a multi-label classifier from what
        it said before, 0 where there are none.
    """
    after_decision = decision_logits(spec, after)
    wanted = tf.cast(present, tf.float32)
    if spec.task == "multiclass":
        classifier = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=after_decision)
        return {"classifier": classifier, "keep": tf.zeros_like(classifier)}
    if spec.task == "binary":
        # Its one unit speaks for label 1; each label is a target.
        classifier = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=tf.cast(labels, tf.float32), logits=after_decision[:, 0]
        )
        return {"classifier": classifier, "keep": tf.zeros_like(classifier)}
    own = tf.one_hot(labels, spec.num_labels)
    classifier = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=wanted, logits=tf.reduce_sum(own * after_decision, axis=1)
    )
    if spec.num_labels == 1:
        return {"classifier": classifier, "keep": tf.zeros_like(classifier)}
    said, now = before / spec.temperature, after / spec.temperature
    probabilities = tf.stop_gradient(tf.sigmoid(said))
    crossed = tf.nn.sigmoid_cross_entropy_with_logits(labels=probabilities, logits=now)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=probabilities, logits=tf.stop_gradient(said))
    keep = tf.reduce_sum((1.0 - own) * (crossed - entropy), axis=1) / (spec.num_labels - 1)
    return {"classifier": classifier, "keep": keep}


def film_losses(films, changed, masks):
    """How much was changed, film by film.

    Args:
        films, changed: float32 (N, h, w, 1) in [0, 1].
        masks: float32 (N, h, w, 1) in [0, 1], where films were changed.

    Returns:
        dict of float32 (N,): `proximity`, `sparsity` and `variation`, see `Weights`.
    """
    height, width = films.shape[1:3]
    return {
        "proximity": tf.reduce_mean(tf.abs(changed - films), axis=(1, 2, 3)),
        "sparsity": tf.reduce_mean(masks, axis=(1, 2, 3)),
        "variation": tf.image.total_variation(masks) / float(height * width),
    }
