"""The options that recipes of GANs share."""

from dataclasses import dataclass

from training.options import option


@dataclass(frozen=True)
class AdversarialOptions:
    """Of every recipe that trains a generator against a discriminator."""

    out: str | None = option(None, "Run folder; the next free one under runs/ by default.")
    resume: bool = option(
        False, "Continue the interrupted run in --out with the options it was started with."
    )
    dry_run: bool = option(False, "Check films and options, print what would be done, and stop.")
    width: int = option(32, "Filters of the networks next to the film.", low=4, high=512)
    epochs: int = option(40, "Epochs, of --steps steps each.", low=1)
    steps: int | None = option(
        None, "Steps an epoch; by default one pass of the discriminator over the training films.", low=1
    )
    batch_size: int = option(16, "Films an update, over all devices.", low=1)
    generator_updates: int = option(1, "Generator updates a step.", low=1, high=100)
    discriminator_updates: int = option(
        5, "Discriminator updates a step, each with films of its own.", low=1, high=100
    )
    generator_rate: float = option(2e-4, "Adam's rate for the generator.", low=0.0, high=1.0)
    discriminator_rate: float = option(2e-4, "Adam's rate for the discriminators.", low=0.0, high=1.0)
    beta_1: float = option(0.5, "Adam's first momentum.", low=0.0, high=0.9999)
    augment: str = option(
        "brightness,contrast,translation",
        "Random changes of real and generated films before discriminators see them, with commas between "
        "them: brightness, contrast, translation, cutout; or none.",
    )
    ema_decay: float = option(
        0.99,
        "Share of its old value that a moving average of the generator, which makes the samples, keeps at "
        "each generator update; 0: no average.",
        low=0.0,
        high=0.999999,
    )
    mixed_precision: bool = option(False, "Compute in half precision where it is safe.")
    accumulate: int = option(
        1, "Parts that the films of an update are divided into, so that less memory is needed.", low=1
    )
    seed: int = option(0, "Of the split, the weights, and all draws.", low=0)
    strategy: str = option(
        "auto",
        "Devices: one (none), all GPUs or logical CPUs (mirrored), or mirrored where there are several GPUs.",
        choices=("auto", "none", "mirrored"),
    )
    deterministic: bool = option(False, "Bit-equal results on the same machine, a little slower.")
    cache: str = option(
        "memory", "Where films are kept between epochs: in memory, or on disk.", choices=("memory", "disk")
    )
    workers: int | None = option(None, "Decoding workers; one a core by default.", low=1)
    dicom_reader: str = option(
        "auto", "What decodes DICOM films.", choices=("auto", "pydicom", "tensorflow-io")
    )
    skip_bad: bool = option(
        False, "Leave out broken rows and unreadable films, and list them in skipped.csv."
    )
    samples: int = option(8, "Films a row in the sample sheet of each epoch.", low=1, high=64)
    export: str | None = option(
        None,
        "Folder for the SavedModel's next version; RUN/saved_models/NAME by default; none: no SavedModel.",
    )


@dataclass(frozen=True)
class GanOptions(AdversarialOptions):
    """Of conditional GANs."""

    data: str | None = option(
        None, "Folder of films, or a manifest CSV. Left out, films are generated (see --phantoms)."
    )
    phantoms: int = option(600, "Generated films, where --data is left out.", low=24)
    labels: str | None = option(
        None,
        "What films are made of: finding columns or class folders, with commas between them; by default "
        "those of the eight diseases that the films have, or all class folders.",
    )
    normal: bool = option(False, 'Films without any finding are a class "No Finding", too.')
    several: str = option(
        "rarest",
        "A film with several of the labels shows the rarest of them (rarest) or is left out (drop).",
        choices=("rarest", "drop"),
    )
    rare: str | None = option(
        None, "Labels that are made rare in the training part, with commas between them (see --imbalance)."
    )
    imbalance: float = option(
        20.0, "--rare: films of the most frequent label for each film of a rare one.", low=1.0
    )
    latent: int = option(100, "Length of the random vector that a film is made of.", low=1, high=4096)
    r1: float = option(
        0.0,
        "Weight of the penalty on discriminators' gradients at real films (Mescheder et al., 2018).",
        low=0.0,
    )
    balanced: bool = option(True, "Every class comes equally often, real films with repetition.")
    features: str = option(
        "auto",
        "What films are compared by (FDD, KID): auto (a classifier of the conditions, learned from the "
        "training films), a run with such a classifier, or none.",
    )
    feature_backbone: str = option("densenet121", "auto: the classifier's network.")
    feature_epochs: int = option(15, "auto: the classifier's epochs.", low=1)
    fdd_films: int = option(
        500, "Validation films that each epoch is compared with at most, and as many generated ones.", low=2
    )
    watch: str = option(
        "stop",
        "Collapsed or copied films: end the run (stop), or go on and say so in the report (warn).",
        choices=("stop", "warn"),
    )
    keep: str = option(
        "best",
        "Which weights are left: of the epoch with the lowest FDD on validation films (best; the last one "
        "with --features none), or of the last epoch.",
        choices=("best", "last"),
    )


def names(text) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b"); () for None, "" and "none"."""
    parts = tuple(filter(None, (part.strip() for part in (text or "").split(","))))
    return () if parts == ("none",) else parts


def check(recipe) -> None:
    """Raises ValueError on options that do not fit each other, before anything is read."""
    from pathlib import Path

    check_training(recipe)
    if recipe.rare and len(set(names(recipe.rare))) != len(names(recipe.rare)):
        raise ValueError(f"--rare takes distinct labels, got {recipe.rare!r}")
    if recipe.labels is not None and not names(recipe.labels):
        raise ValueError(f"--labels takes names with commas between them, got {recipe.labels!r}")
    if recipe.features not in ("auto", "none") and not (Path(recipe.features) / "spec.json").is_file():
        raise ValueError(f"--features {recipe.features}: expected auto, none, or a run with a classifier")
    if recipe.features == "auto":
        from kxray import models

        models.check_backbone(recipe.feature_backbone)


def check_training(recipe) -> None:
    """The same for the `AdversarialOptions` of a recipe."""
    from kxray.layers.diff_augment import POLICIES

    if recipe.batch_size % recipe.accumulate:
        raise ValueError(
            f"--batch-size {recipe.batch_size} does not divide into --accumulate {recipe.accumulate} parts"
        )
    for policy in names(recipe.augment):
        if policy not in POLICIES:
            raise ValueError(f"--augment {policy}: expected none, or some of {', '.join(POLICIES)}")


def steps_of(recipe, films) -> int:
    """Steps an epoch: those asked for, or one pass of the discriminator over the training films."""
    return recipe.steps or -(-films // (recipe.batch_size * recipe.discriminator_updates))


def kept_by(recipe) -> str:
    """The column of history.csv that chooses the epoch whose weights are left; "": the last."""
    return "fdd" if recipe.keep == "best" and recipe.features != "none" else ""


def schedule_of(tau_every):
    """tau of each epoch (from 0): 0.1 more every `tau_every` epochs, at most 1 (Ann et al., 2020, 3.3)."""
    from kxray.layers.self_attention import scheduled_tau

    return lambda epoch: scheduled_tau(epoch, tau_every)
