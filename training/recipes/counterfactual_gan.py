"""Learns to change films so that a classifier says something else: attention GAN with residual connection.

\b
  python -m training.fit counterfactual_gan --classifier RUN
      of any classifier of training.fit, on its own films: its training part trains, its validation part
      chooses, its test part is judged by
  python -m training.fit counterfactual_gan --classifier RUN --targets "no Effusion,Effusion" --preset cpu
      one finding, both directions, on two processor cores
  python -m training.fit counterfactual_gan --classifier RUN --no-attention
  python -m training.fit counterfactual_gan --classifier RUN --no-residual
  python -m training.fit counterfactual_gan --classifier RUN --classifier-weight 0
      the ablations: a change without a mask, a film that is drawn anew, and no word of the classifier
  python -m training.fit counterfactual_gan --classifier RUN --data FILMS
      other films with the same labels, or the classifier's own where they have been moved

A target is what the classifier is to say: of findings "Effusion" and "no Effusion", of exclusive labels each
of them. One generator learns all targets: counterfactual = clip(film + mask * residual), the mask in [0, 1],
the residual at most --amplitude. The classifier is frozen. No public paper describes the slides' network;
this is the union of the published forms: VA-GAN (Baumgartner et al., 2018), Fixed-Point GAN (Siddiquee et
al., 2019), GANimation (Pumarola et al., 2018) and GANterfactual (Mertes et al., 2022).

A classifier that is near chance on its validation films is refused: a counterfactual of it explains nothing.
The run folder stands alone: it holds a copy of the classifier. What a counterfactual shows is what this
classifier listens to, right or wrong; it is no statement about a patient, and no film for diagnosis.

Then: `python -m training.explain evaluate --run CLASSIFIER --counterfactual RUN`.
"""

from dataclasses import dataclass

from training.generating.gan_options import AdversarialOptions
from training.options import option

CPU = {"width": 16, "epochs": 20, "steps": 100, "batch_size": 8, "validation_pairs": 120}
SMOKE = {
    "width": 4,
    "epochs": 2,
    "steps": 3,
    "batch_size": 4,
    "self_attention": False,
    "validation_pairs": 16,
    "test_pairs": 24,
    "samples": 2,
    "least_auroc": 0.0,
}
PRESETS = {"cpu": CPU, "smoke": SMOKE}


@dataclass(frozen=True)
class Recipe(AdversarialOptions):
    classifier: str | None = option(None, "Run of training.fit whose decisions are to be explained.")
    data: str | None = option(
        None, "Films with the classifier's labels; those that it was trained on by default."
    )
    targets: str | None = option(
        None,
        'What the classifier is to say, with commas between them ("no Effusion,Effusion"); by default all '
        "that some films have and others have not.",
    )
    least_auroc: float = option(
        0.6,
        "Smallest AUROC of a target's label on the classifier's validation films, whose 95% interval must be "
        "above 0.5, too; 0 asks for nothing.",
        low=0.0,
        high=1.0,
    )
    width: int = option(16, "Filters of the networks next to the film.", low=4, high=512)
    epochs: int = option(40, "Epochs, of --steps steps each.", low=1)
    discriminator_updates: int = option(
        1, "Discriminator updates a step, each with films of its own.", low=1, high=100
    )
    augment: str = option(
        "none",
        "Random changes of real and counterfactual films before the discriminator sees them, with commas "
        "between them: brightness, contrast, translation, cutout; or none.",
    )
    ema_decay: float = option(
        0.99,
        "Share of its old value that a moving average of the generator, which makes the counterfactuals, "
        "keeps at each generator update; 0: no average.",
        low=0.0,
        high=0.999999,
    )
    amplitude: float = option(1.0, "Largest change of a pixel, in grey values of [0, 1].", low=1e-3, high=1.0)
    attention: bool = option(True, "A mask says where the film may change.")
    residual: bool = option(True, "The film itself is kept below the change; else a film is drawn anew.")
    self_attention: bool = option(True, "Self-attention at the generator's coarsest maps.")
    adversarial: str = option(
        "least_squares",
        "The discriminator's loss: least squares, or the Wasserstein distance with a gradient penalty.",
        choices=("least_squares", "wgan_gp"),
    )
    penalty: float = option(10.0, "wgan_gp: weight of the gradient penalty.", low=0.0)
    mismatched: float = option(
        0.0,
        "Weight of real films under a target that they have not, which the discriminator is to refuse.",
        low=0.0,
    )
    adversarial_weight: float = option(1.0, "The discriminator takes it for a film with the target.", low=0.0)
    classifier_weight: float = option(1.0, "The classifier says the target; 0: it is not asked.", low=0.0)
    keep_weight: float = option(1.0, "The classifier says the same of all other findings.", low=0.0)
    identity_weight: float = option(10.0, "Films that have the target already stay as they are.", low=0.0)
    proximity_weight: float = option(10.0, "The change is small: mean |y - x|.", low=0.0)
    sparsity_weight: float = option(0.1, "The mask is small: its mean.", low=0.0)
    variation_weight: float = option(0.01, "The mask is in one piece: its total variation.", low=0.0)
    cycle_weight: float = option(0.0, "Changed back, the film is what it was.", low=0.0)
    validation_pairs: int = option(
        240, "Validation films, each asked for a target, that an epoch is judged by, at most.", low=2
    )
    test_pairs: int = option(2000, "The same of test films, for the finished run.", low=2)
    keep: str = option(
        "best",
        "Which weights are left: of the epoch with the lowest objective on validation films (best; the last "
        "one with --classifier-weight 0), or of the last epoch.",
        choices=("best", "last"),
    )
    samples: int = option(4, "Films of each target in the sample sheet of each epoch.", low=1, high=64)
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


def run(recipe, given):
    from training.counterfactuals import cf_job

    return cf_job.run(recipe, given)
