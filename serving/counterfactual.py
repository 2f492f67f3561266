"""The graph of a served counterfactual GAN: film and target in, the changed film out. TensorFlow ops only."""

import tensorflow as tf

from kxray.explain import PREDICTED
from kxray.explain.targets import targets_of
from serving import graph

SIGNATURE = "explain_counterfactual"
# More than any probability is apart from another.
_LAST = 2.0


def endpoints(gan, gan_spec, model, spec, methods):
    """Builds the serving signatures of a classifier with a counterfactual GAN of it.

    Args:
        gan: `kxray.models.build("counterfactual_gan", ...)`, trained.
        gan_spec: its kxray.ModelSpec, task "counterfactual"; its labels are targets of the classifier.
        model, spec, methods: the classifier; see `serving.graph.endpoints`.

    Returns:
        The signatures of `serving.graph.endpoints`, and `explain_counterfactual` (`image_bytes` string (N,),
        `label` int32 (N,): an index into `counterfactual_targets`, or -1 for the opposite of what the
        classifier says: that its most probable label is absent (multi-label), or the most probable other
        label). It adds to the outputs of every prediction, which are those of the film as it was sent:
        `film` float32 (N, h, w), what the network saw, in [0, 1];
        `counterfactual` float32 (N, h, w), that film so that the classifier says the target, in [0, 1];
        `difference` float32 (N, h, w), counterfactual - film;
        `mask` float32 (N, h, w) in [0, 1], where the GAN wanted to change the film;
        `heatmap` float32 (N, h, w), 0 or more, mask * |residual|;
        `probabilities_after` float32 (N, L), calibrated, of the counterfactual;
        `explained_label` string (N,), the name of the target; and
        `reached` bool (N,), whether the classifier says it of the counterfactual
        (`kxray.explain.targets.reached`).
        `describe` adds `counterfactual_targets` string (1, T) and `counterfactual_spec` string (1,), the JSON
        of `gan_spec`.

    Raises:
        ValueError: a target that the classifier does not have, or a method that cannot read it.
    """
    shared = graph.classifier(model, spec)
    targets = _targets(gan_spec, spec)
    names = tf.constant(gan_spec.labels)

    def explain_counterfactual(image_bytes, label):
        unnamed = "the opposite of what the classifier says"
        with tf.control_dependencies(graph.label_checks(image_bytes, label, gan_spec.labels, unnamed)):
            films, _ = shared.network_input(tf.identity(image_bytes))
        top, outputs = shared.answer(shared.logits(films))
        chosen = tf.where(label == PREDICTED, _opposite(outputs["probabilities"], top, targets, spec), label)
        changed = gan.changed(films, chosen, region=1.0)
        _, after = shared.answer(shared.logits(changed["film"]))
        return {
            **outputs,
            "film": films[..., 0],
            "counterfactual": changed["film"][..., 0],
            "difference": (changed["film"] - films)[..., 0],
            "mask": changed["mask"][..., 0],
            "heatmap": (changed["mask"] * tf.abs(changed["residual"]))[..., 0],
            "probabilities_after": after["probabilities"],
            "explained_label": tf.gather(names, chosen),
            "reached": _reached(after["probabilities"], chosen, targets, spec),
        }

    signatures = graph.endpoints(model, spec, methods, shared)
    describe_classifier, _ = signatures["describe"]

    def describe():
        return {
            **describe_classifier(),
            "counterfactual_targets": tf.identity(names)[None],
            "counterfactual_spec": tf.constant([gan_spec.to_json()]),
        }

    return {
        **signatures,
        SIGNATURE: (explain_counterfactual, [graph.FILMS, graph.WANTED]),
        "describe": (describe, []),
    }


def _targets(gan_spec, spec):
    """The targets of a GAN, which may be some of those of its classifier."""
    known = {target.name: target for target in targets_of(spec)}
    unknown = [name for name in gan_spec.labels if name not in known]
    if unknown:
        raise ValueError(
            f"{gan_spec.name!r} makes counterfactuals of {unknown[0]!r}; the targets of its classifier are: "
            + ", ".join(known)
        )
    return [known[name] for name in gan_spec.labels]


def _opposite(probabilities, top, targets, spec):
    """int32 (N,): `kxray.explain.targets.opposite` of the most probable label, among the GAN's targets."""
    labels = tf.constant([target.label for target in targets])
    about = tf.gather(probabilities, labels, axis=1)
    if spec.task == "multilabel":
        # Where there is no absence to ask for, it is the finding that is least there.
        present = tf.constant([target.present for target in targets])
        score = tf.where(present, -about, about)
    else:
        score = about - _LAST * tf.cast(top[:, None] == labels, tf.float32)
    return tf.argmax(score, axis=1, output_type=tf.int32)


def _reached(probabilities, chosen, targets, spec):
    """bool (N,): `kxray.explain.targets.reached`."""
    label = tf.gather(tf.constant([target.label for target in targets]), chosen)
    if spec.task == "multiclass":
        return tf.argmax(probabilities, axis=1, output_type=tf.int32) == label
    probability = tf.gather(probabilities, label, batch_dims=1)
    if spec.task == "binary":
        return probability >= 0.5
    limits = tf.constant([spec.threshold(name) for name in spec.labels], tf.float32)
    present = tf.gather(tf.constant([target.present for target in targets]), chosen)
    return (probability >= tf.gather(limits, label)) == present
