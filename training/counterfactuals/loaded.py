"""A finished counterfactual run as the programs use it: its GAN, its targets, the classifier it explains."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedCounterfactual:
    """A counterfactual run.

    Attributes:
        run: its folder.
        gan: the model, whose conditions are numbered as `targets`.
        spec: its ModelSpec; its labels are the names of the targets.
        classifier: the frozen classifier, as the run keeps it in RUN/classifier.
        classifier_spec: its ModelSpec.
        targets: the `kxray.explain.targets.Target` that the GAN has learned, in the order of its conditions;
            some of `targets_of(classifier_spec)`.
    """

    run: Path
    gan: object
    spec: object
    classifier: object
    classifier_spec: object
    targets: tuple

    @property
    def digest(self) -> str:
        """`classifier_digest` of the classifier: equal where two runs explain the same one."""
        return classifier_digest(self.classifier, self.classifier_spec)

    @property
    def known(self) -> np.ndarray:
        """The number of each learned target among `targets_of(classifier_spec)`, int (T,), ascending."""
        from kxray.explain.targets import target_index

        return np.array([target_index(self.classifier_spec, target.name) for target in self.targets], int)

    def counterfactuals(self, films, targets, *, region=None, batch_size=16):
        """`kxray.explain.Counterfactuals` of films float (N, h, w, 1) in [0, 1].

        Args:
            films: the classifier's network inputs.
            targets: name or number of one target, or one a film; numbers are those of the classifier.
            region: see `kxray.explain.gan_counterfactuals`.
            batch_size: films at a time.

        Raises:
            ValueError: films that do not fit, a target that is unknown or that the GAN has not learned.
        """
        from kxray.explain.counterfactual import gan_counterfactuals

        return gan_counterfactuals(
            self.gan,
            self.classifier,
            self.classifier_spec,
            films,
            targets,
            region=region,
            batch_size=batch_size,
            gan_targets=self.spec.labels,
        )

    def probabilities(self, films, batch_size=64) -> np.ndarray:
        """What the classifier says of films float32 (N, h, w, 1) in [0, 1]: calibrated, (N, L)."""
        return probabilities_of(self.classifier, self.classifier_spec, films, batch_size)


def load_counterfactual(run) -> LoadedCounterfactual:
    """Reads a run of `training.fit counterfactual_gan`.

    Args:
        run: its folder.

    Raises:
        FileNotFoundError, ValueError: no such run, a run of something else, or one whose targets its
            classifier does not have.
    """
    from kxray import models
    from kxray.explain.targets import targets_of

    gan, spec, classifier, classifier_spec = models.load_counterfactual(run)
    by_name = {target.name: target for target in targets_of(classifier_spec)}
    unknown = [name for name in spec.labels if name not in by_name]
    if unknown or len(spec.labels) != gan.num_targets:
        what = f"the target {unknown[0]!r}" if unknown else f"{gan.num_targets} conditions"
        raise ValueError(
            f"{run}: {what} and {len(spec.labels)} names do not fit its classifier, whose targets are: "
            f"{', '.join(by_name)}"
        )
    targets = tuple(by_name[name] for name in spec.labels)
    return LoadedCounterfactual(Path(run), gan, spec, classifier, classifier_spec, targets)


def classifier_digest(model, spec) -> str:
    """SHA-256 of what a classifier says: its labels, temperature and thresholds, and all of its weights.

    Unlike a digest of its files it does not depend on when they were written.

    Args:
        model: keras.Model.
        spec: its ModelSpec.
    """
    facts = [spec.task, *spec.labels, *map(str, spec.image_size), repr(float(spec.temperature))]
    facts += [repr(spec.threshold(label)) for label in spec.labels]
    digest = hashlib.sha256("\0".join(facts).encode())
    for variable in model.weights:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


def probabilities_of(model, spec, films, batch_size=64) -> np.ndarray:
    """Calibrated probabilities float (N, L) of films float32 (N, h, w, 1) in [0, 1]."""
    from training import scoring

    forward = scoring.traced_logits(model, spec)
    films = np.asarray(films, np.float32)
    units = model.outputs[0].shape[-1]
    logits = [np.zeros((0, units), np.float32)]
    logits += [
        forward(films[start : start + batch_size]).numpy() for start in range(0, len(films), batch_size)
    ]
    return scoring.calibrated(np.concatenate(logits), spec)
