"""What the recipe of counterfactual GANs is asked, beside what all recipes of GANs are."""

from pathlib import Path

from training.generating import gan_options
from training.generating.gan_options import names


def check(recipe) -> None:
    """Raises ValueError on options that do not fit each other, before anything is read."""
    gan_options.check_training(recipe)
    if recipe.classifier is None:
        raise ValueError(
            "--classifier is missing: name the run of training.fit whose decisions are to be explained"
        )
    if not (Path(recipe.classifier) / "spec.json").is_file():
        raise ValueError(f"--classifier {recipe.classifier}: expected a run folder with a trained classifier")
    if recipe.targets is not None and not names(recipe.targets):
        raise ValueError(f"--targets takes names with commas between them, got {recipe.targets!r}")
    if not any((recipe.classifier_weight, recipe.adversarial_weight)):
        raise ValueError(
            "--classifier-weight 0 with --adversarial-weight 0: nothing asks for a change; leave one above 0"
        )
    weights_of(recipe)


def weights_of(recipe):
    """`kxray.explain.counterfactual_losses.Weights` of a recipe."""
    from kxray.explain.counterfactual_losses import Weights

    return Weights(
        adversarial=recipe.adversarial_weight,
        classifier=recipe.classifier_weight,
        keep=recipe.keep_weight,
        identity=recipe.identity_weight,
        proximity=recipe.proximity_weight,
        sparsity=recipe.sparsity_weight,
        variation=recipe.variation_weight,
        cycle=recipe.cycle_weight,
    )


def kept_by(recipe) -> str:
    """The column of history.csv that chooses the epoch whose weights are left; "": the last.

    Without the classifier's term the objective is lowest where nothing is changed: it chooses nothing then.
    """
    return "val_objective" if recipe.keep == "best" and recipe.classifier_weight else ""


def is_masked(recipe) -> bool:
    """Whether the generator has an attention mask."""
    return recipe.attention and recipe.residual
