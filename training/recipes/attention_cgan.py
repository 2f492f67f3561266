"""Learns to make chest films of a wanted disease: attention multi-scale conditional GAN (Ann et al., 2020).

\b
  python -m training.fit attention_cgan --data NIH --scales 1
      films of 64 pixels, in small-data practice. NIH is the folder of ChestX-ray14, a manifest with a column
      of 0, 1 or nothing (unknown) a finding, or a tree of class folders
  python -m training.fit attention_cgan --data NIH --preset paper
      films of 64, 128 and 256 pixels as in the paper: least squares, Adam 2e-5 with momentum 0.5, batches of
      16, 20 epochs, five discriminator updates for each generator update, tau from 0, +0.1 every 5 epochs
  python -m training.fit attention_cgan --preset cpu --data NIH64
      one scale on two processor cores, 13 minutes on 549 NIH films: the FDD to validation films falls from
      5.7 to 1.7 and KID from 0.094 to 0.010 (one seed; README tells what such films are worth)
  python -m training.fit attention_cgan --phantoms 600 --scales 3 --width 16
      generated films: no data needed; with --preset cpu, --width 8 and --batch-size 8 15 minutes

One network makes films of all conditions. The run folder holds model.keras, a sheet of samples of every epoch
(rows: classes; the same random vectors), the paper's Figure 2 (steps.csv, report.html), and in history.csv
for every epoch the Frechet DenseNet distance (FDD) and KID to validation films, how much films differ, and
how near they are to training films. A run ends, with the step named, where a loss is no number, where films
collapse into one, or where they repeat training films (--watch). The splits keep patients together: the GAN
and the classifier whose features make the FDD see the training part alone.

Then: `python -m training.generate --run RUN --class Nodule --count 500 --out DIR`. Generated films are marked
as such and are not for diagnosis.
"""

from dataclasses import dataclass

from training.generating.gan_options import GanOptions, schedule_of
from training.options import option

PAPER = {
    "latent": 100,
    "width": 64,
    "epochs": 20,
    "batch_size": 16,
    "generator_updates": 1,
    "discriminator_updates": 5,
    "generator_rate": 2e-5,
    "discriminator_rate": 2e-5,
    "beta_1": 0.5,
    "augment": "none",
    "ema_decay": 0.0,
    "r1": 0.0,
    "balanced": False,
    "feature_backbone": "densenet121",
    "keep": "last",
}
CPU = {
    "latent": 64,
    "width": 24,
    "epochs": 60,
    "steps": 50,
    "discriminator_updates": 2,
    "ema_decay": 0.995,
    "feature_backbone": "small_densenet",
    "feature_epochs": 30,
}
SMOKE = {
    "phantoms": 48,
    "labels": "Cardiomegaly,Effusion",
    "normal": True,
    "latent": 8,
    "width": 4,
    "epochs": 2,
    "steps": 4,
    "batch_size": 4,
    "discriminator_updates": 2,
    "feature_backbone": "small_densenet",
    "feature_epochs": 1,
    "samples": 2,
}
PRESETS = {
    "paper": {
        **PAPER,
        "scales": 3,
        "tau": "schedule",
        "attention_pool": 1,
        "mismatched": 0.0,
        "condition_gain": 1.0,
    },
    "cpu": {
        **CPU,
        "scales": 1,
        "generator_rate": 3e-4,
        "discriminator_rate": 6e-4,
        "mismatched": 0.5,
        "condition_gain": 6.0,
    },
    "smoke": {**SMOKE, "scales": 1},
}


@dataclass(frozen=True)
class Recipe(GanOptions):
    scales: int = option(1, "1: films of 64 pixels; 2: and 128; 3: and 256.", low=1, high=3)
    tau: str = option(
        "schedule",
        "How much of its self-attention the generator lets in: the paper's schedule, or learned.",
        choices=("schedule", "learned"),
    )
    tau_every: int = option(5, "schedule: epochs between two steps of 0.1.", low=1)
    attention_pool: int = option(
        4,
        "Side of the squares that keys and values of the attention are pooled over; at 1, the paper's, every "
        "film of 4,096 places takes 64 MiB for each copy of its pairs.",
        low=1,
        high=8,
    )
    spectral_generator: bool = option(False, "Spectral normalisation in the generator, too.")
    mismatched: float = option(
        0.0,
        "Weight of real films under a wrong class, which the conditional head is to refuse (Reed et al., "
        "2016); 0: the paper's loss.",
        low=0.0,
    )
    condition_gain: float = option(
        1.0,
        "What the one-hot condition is multiplied by where the networks are told it; above 1 classes differ "
        "more.",
        low=1e-3,
        high=100.0,
    )
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


def build(recipe, num_classes):
    """The GAN of a recipe, uncompiled."""
    from kxray import models

    return models.build(
        "attention_cgan",
        num_classes=num_classes,
        scales=recipe.scales,
        latent=recipe.latent,
        width=recipe.width,
        tau=recipe.tau,
        attention_pool=recipe.attention_pool,
        spectral_generator=recipe.spectral_generator,
        condition_gain=recipe.condition_gain,
        ema=recipe.ema_decay > 0,
    )


def task_of(recipe):
    from training.generating.gan_job import GanTask

    if 64 % recipe.attention_pool:
        raise ValueError(f"--attention-pool {recipe.attention_pool}: expected 1, 2, 4 or 8")
    side = 64 * 2 ** (recipe.scales - 1)
    return GanTask("attention_cgan", side, build, schedule_of(recipe.tau_every))


def run(recipe, given):
    from training.generating import gan_job

    return gan_job.run(recipe, given, task_of)
