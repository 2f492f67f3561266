"""Makers of counterfactuals on one trained model: GANs, the optimisation of a film, a shift of its code."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from training.explaining.film_explainer import model_digest

GAN, MASKED_RESIDUAL, LATENT_SHIFT = "counterfactual_gan", "masked_residual", "latent_shift"
STEPS = 200
# A name is a row of a table and a folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+-]*")


@dataclasses.dataclass(frozen=True)
class AskedMakers:
    """Which makers are asked for.

    Attributes:
        gans: pairs (name, run folder of training.fit counterfactual_gan).
        steps: of `kxray.explain.masked_residual`; 0: not asked for.
        autoencoder: run folder of training.fit autoencoder, of the latent shift; None: not asked for.
    """

    gans: tuple[tuple[str, str], ...] = ()
    steps: int = 0
    autoencoder: str | None = None

    def __bool__(self):
        return bool(self.gans or self.steps or self.autoencoder)


@dataclasses.dataclass(frozen=True, eq=False)
class CounterfactualMaker:
    """One maker of counterfactuals of one classifier.

    Attributes:
        name: its row of the table.
        told: what it is, in a few words.
        state: what its counterfactuals depend on beside the classifier and the films.
        known: numbers of the targets (`kxray.explain.targets_of`) that it can be asked for.
        make: (films float32 (N, h, w, 1), targets int (N,)) -> `kxray.explain.Counterfactuals`.
    """

    name: str
    told: str
    state: str
    known: frozenset
    make: Callable

    def __call__(self, films, targets):
        return self.make(np.asarray(films, np.float32), np.asarray(targets, np.int32))


def asked_makers(gans=(), steps=0, autoencoder=None) -> AskedMakers:
    """What the options of the program ask for.

    Args:
        gans: texts RUN or NAME=RUN. One without a name is called counterfactual_gan; where there are several,
            each goes by the name of its folder.
        steps: of the optimisation.
        autoencoder: run folder.

    Raises:
        ValueError: a run that is not there, a name twice, or one that is taken or no name.
    """
    from kxray import explain
    from training.explaining.map_makers import BASELINES

    named = []
    for text in gans:
        name, mark, run = text.partition("=")
        if not mark or Path(text).exists():
            name, run = (GAN if len(gans) == 1 else Path(text).resolve().name), text
        named.append((name, run))
    taken = [*explain.METHODS, *BASELINES, MASKED_RESIDUAL, LATENT_SHIFT]
    for place, (name, run) in enumerate(named):
        if not Path(run).exists():
            raise ValueError(f"{run}: no such file or folder (--counterfactual)")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"--counterfactual: {name!r} is no name; letters, digits, spaces, _ . + and - make one"
            )
        if name in taken or name in [other for other, _ in named[:place]]:
            raise ValueError(f"--counterfactual: the name {name!r} is taken; give another as NAME={run}")
    if autoencoder is not None and not Path(autoencoder).exists():
        raise ValueError(f"{autoencoder}: no such file or folder (--latent-shift)")
    return AskedMakers(tuple(named), steps or 0, autoencoder)


def load_makers(asked, trained, batch_size=16) -> list[CounterfactualMaker]:
    """The makers that are asked for, GANs first.

    Args:
        asked: AskedMakers.
        trained: TrainedModel, whose answers they are to turn.
        batch_size: films that are changed at once.

    Raises:
        FileNotFoundError, ValueError: no such run; a run of something else; a GAN that was trained against
            another classifier; an autoencoder of films of another size.
    """
    makers = [_gan(name, run, trained, batch_size) for name, run in asked.gans]
    if asked.steps:
        makers.append(_masked_residual(asked.steps, trained, batch_size))
    if asked.autoencoder:
        makers.append(_latent_shift(asked.autoencoder, trained, batch_size))
    return makers


def _gan(name, run, trained, batch_size):
    from kxray.explain import gan_counterfactuals
    from training.counterfactuals.loaded import classifier_digest, load_counterfactual

    loaded = load_counterfactual(run)
    if loaded.digest != classifier_digest(trained.model, trained.spec):
        raise ValueError(
            f"{run}: was trained against another classifier ({loaded.classifier_spec.name}: "
            f"{', '.join(loaded.classifier_spec.labels)}) than --run; what it changes would say nothing of "
            f"this one. Give the classifier in {Path(run) / 'classifier'} as --run, or train it anew"
        )

    def make(films, targets):
        return gan_counterfactuals(
            loaded.gan,
            trained.model,
            trained.spec,
            films,
            targets,
            batch_size=batch_size,
            gan_targets=loaded.spec.labels,
        )

    return CounterfactualMaker(
        name, gan_told(loaded.gan.options), model_digest(run), frozenset(loaded.known.tolist()), make
    )


def gan_told(options) -> str:
    """What a GAN is made of, of the options it was built with."""
    parts = [
        "attention mask" if options["attention"] and options["residual"] else "no attention mask",
        "residual connection" if options["residual"] else "no residual connection: the film is drawn anew",
    ]
    return f"generator with {' and '.join(parts)}"


def _masked_residual(steps, trained, batch_size):
    from kxray.explain import masked_residual, targets_of

    def make(films, targets):
        return masked_residual(
            trained.model, trained.spec, films, targets, steps=steps, batch_size=batch_size
        )

    return CounterfactualMaker(
        MASKED_RESIDUAL,
        f"a mask and a residual of each film, optimised for at most {steps} steps",
        f"{steps} steps",
        frozenset(range(len(targets_of(trained.spec)))),
        make,
    )


def _latent_shift(run, trained, batch_size):
    import kxray
    from kxray.explain import latent_shift, targets_of

    autoencoder, spec = kxray.load(run)
    if spec.task != "autoencoder":
        raise ValueError(
            f"{run}: {spec.name!r} is no autoencoder (task {spec.task!r}); --latent-shift takes a run of "
            "training.fit autoencoder"
        )
    if spec.image_size != trained.spec.image_size:
        sizes = ("x".join(map(str, size)) for size in (spec.image_size, trained.spec.image_size))
        raise ValueError(
            "{}: an autoencoder of {} films, and the classifier takes {}; train one with "
            "training.fit autoencoder --classifier RUN".format(run, *sizes)
        )

    def make(films, targets):
        return latent_shift(trained.model, trained.spec, autoencoder, films, targets, batch_size=batch_size)

    return CounterfactualMaker(
        LATENT_SHIFT,
        "a step through the code of an autoencoder against the classifier's gradient; compared with the film "
        "that the autoencoder gives back",
        model_digest(run),
        frozenset(range(len(targets_of(trained.spec)))),
        make,
    )
