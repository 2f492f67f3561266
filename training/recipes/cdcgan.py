"""Learns to make films of a wanted class with a conditional DCGAN: what attention_cgan was compared with.

\b
  python -m training.fit cdcgan --data NIH --side 64
  python -m training.fit cdcgan --data NIH --side 256 --preset paper
  python -m training.fit cdcgan --data NIH64 --preset cpu
      4 minutes on two cores on 549 NIH films: FDD from 17.1 to 1.2, KID from 0.364 to 0.004 (one seed)

Films, split, run folder, distances and watch are those of attention_cgan (`python -m training.fit
attention_cgan --help`), so that runs can be set beside each other: `python -m training.generate evaluate
--run RUN --against CDCGAN_RUN`. Transposed convolutions with batch normalisation, one discriminator that is
told the class, cross-entropy, no attention (Radford et al., 2016; Mirza & Osindero, 2014).
"""

from dataclasses import dataclass

from training.generating.gan_options import GanOptions
from training.options import option
from training.recipes.attention_cgan import CPU, PAPER, SMOKE

PRESETS = {
    "paper": {**PAPER, "side": 256},
    "cpu": {**CPU, "side": 64},
    "smoke": {**SMOKE, "side": 64},
}


@dataclass(frozen=True)
class Recipe(GanOptions):
    side: int = option(64, "Side of the films: 64, 128 or 256 pixels.", low=64, high=256)
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


def build(recipe, num_classes):
    """The GAN of a recipe, uncompiled."""
    from kxray import models

    return models.build(
        "cdcgan",
        num_classes=num_classes,
        side=recipe.side,
        latent=recipe.latent,
        width=recipe.width,
        ema=recipe.ema_decay > 0,
    )


def task_of(recipe):
    from training.generating.gan_job import GanTask

    if recipe.side not in (64, 128, 256):
        raise ValueError(f"--side {recipe.side}: expected 64, 128 or 256 pixels")
    return GanTask("cdcgan", recipe.side, build, tau=lambda epoch: 0.0)


def run(recipe, given):
    from training.generating import gan_job

    return gan_job.run(recipe, given, task_of)
