"""Transfer from ImageNet on few films: a frozen backbone with a new head, or a fine-tuned one.

\b
  python -m training.fit transfer --data DIR --folds 5
      trains a linear head on the features of a frozen DenseNet-201, which are computed once. DIR is a folder
      of class folders or a manifest with a `label` column; every film is measured by a model that has not
      seen it
  python -m training.fit transfer --data DIR --folds 5 --backbone xception --weights WEIGHTS.h5
      another backbone, from a file of weights: see KXRAY_WEIGHTS for machines without a network
  python -m training.fit transfer --data DIR --folds 5 --mode fine_tune --unfreeze-epochs 5
      trains the backbone as well, at a tenth of the head's rate, one stage more every five epochs
  python -m training.fit transfer --data DIR --augment 8
      trains the head on eight augmented views of each film beside the film itself
  python -m training.fit transfer --findings all --data NIH --folds 5
  python -m training.fit transfer --findings Mass,Nodule --phantoms 1000
      learns findings that may occur together, one sigmoid each: of NIH's folder, or a manifest with a column
      of 0, 1 or nothing (unknown, which adds nothing to the loss) for each; of generated chest films without
      --data

Which backbone, and frozen or fine-tuned, for your films: `python -m training.compare transfer` answers that.

The features are standardised by the training films, and that is folded into the head, so the exported model
is the plain network. Balanced classes, AdamW with warm-up and cosine decay, gradients clipped to norm 1, the
weights of the lowest validation loss. Fine-tuning keeps batch normalisation frozen, as small batches demand.
`--preset paper` is plain transfer for 40 epochs: one constant rate, no augmentation, features as they are.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from training import augmentation, findings, shell
from training.classifier import ClassifierOptions, fit_classifier
from training.options import option
from training.task import ClassifierTask

PRESETS = {
    "paper": {
        "epochs": 40,
        "image_size": 224,
        "learning_rate_decay": "none",
        "standardize": False,
        "flips": "none",
        **dict.fromkeys(("shift", "zoom", "brightness", "contrast", "blur"), 0.0),
        "backbone_rate": 1.0,
    },
    "smoke": {
        "backbone": "mobilenetv2",
        "weights": "none",
        "image_size": 32,
        "epochs": 2,
        "phantoms": 24,
        "batch_size": 8,
    },
}
SMALLEST_FILM = 32
# What says nothing in the other mode.
OF_MODE = {
    "feature_extractor": ("augment", "standardize"),
    "fine_tune": ("trained_stages", "backbone_rate", "stage_decay", "unfreeze_epochs", "batch_norm"),
}


@dataclass(frozen=True)
class Recipe(ClassifierOptions):
    epochs: int = option(40, "Passes over the training films.", low=1)
    batch_size: int = option(16, "Films a step, over all devices.", low=1)
    label_column: str = option("label", "Manifest column with the class of a film.")
    findings: str | None = option(
        None,
        "Findings that may occur together, instead of classes: all, or names of finding columns with commas "
        "between them.",
    )
    backbone: str = option(
        "densenet201",
        "Network: alexnet, resnet152, densenet201, xception, mobilenetv2, efficientnetv2b0 and the other "
        "image models of keras.applications.",
    )
    mode: str = option(
        "feature_extractor",
        "feature_extractor: only a head is trained, on features that are computed once; fine_tune: the "
        "backbone is trained too.",
        choices=("feature_extractor", "fine_tune"),
    )
    weights: str = option(
        "imagenet",
        "Starting weights of the backbone: imagenet (found in the folder KXRAY_WEIGHTS, or downloaded), none "
        "(random), a run folder, or a file of weights.",
    )
    image_size: int = option(224, "Side of the network's input in pixels.", low=1, high=2048)
    standardize: bool = option(
        True, "feature_extractor: bring each feature to mean 0 and deviation 1 over the training films."
    )
    augment: int = option(
        0, "feature_extractor: augmented views of each film whose features are kept as well.", low=0
    )
    trained_stages: int | None = option(
        None, "fine_tune: train the last so many stages of the backbone only; all by default.", low=1
    )
    batch_norm: str = option(
        "frozen", "fine_tune: batch normalisation of the trained stages.", choices=("frozen", "trained")
    )
    backbone_rate: float = option(
        0.1, "fine_tune: rate of the backbone's last stage, as a share of the head's.", low=0.0, high=1.0
    )
    stage_decay: float = option(
        1.0, "fine_tune: rate of a stage, as a share of that of the stage after it.", low=0.01, high=1.0
    )
    unfreeze_epochs: int = option(
        0,
        "fine_tune: begin with the head alone, then one stage more every so many epochs; 0: all at once.",
        low=0,
    )
    warmup: float = option(0.1, "Share of the run in which the rate rises from 0.", low=0.0, high=0.9)
    weight_decay: float = option(1e-4, "AdamW's decoupled weight decay.", low=0.0, high=1.0)
    flips: str = option(
        "horizontal",
        "Augmentation: left-right only (for patients), mirror images and quarter turns (dihedral), or none.",
        choices=("dihedral", "horizontal", "none"),
    )
    rotation: float = option(0.0, "Augmentation: largest rotation, degrees.", low=0.0, high=180.0)
    shift: float = option(0.05, "Augmentation: largest shift, fraction of the side.", low=0.0, high=0.9)
    zoom: float = option(0.1, "Augmentation: largest change of scale, fraction.", low=0.0, high=0.9)
    brightness: float = option(0.08, "Augmentation: largest shift, share of full range.", low=0.0, high=1.0)
    contrast: float = option(0.2, "Augmentation: largest change, fraction.", low=0.0, high=0.9)
    blur: float = option(0.8, "Augmentation: largest Gaussian blur, pixels.", low=0.0, high=3.0)
    test_time_flips: bool = option(
        False, "Also report the accuracy over the mirror images (and turns) of --flips of every test film."
    )
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


def task_of(recipe) -> ClassifierTask:
    from kxray import models

    side, frozen = recipe.image_size, recipe.mode == "feature_extractor"
    models.check_backbone(recipe.backbone, None, (side, side))
    if recipe.weights not in ("imagenet", "none") and not Path(recipe.weights).exists():
        raise ValueError(
            f"--weights {recipe.weights}: expected imagenet, none, or a run folder or file, and there is none"
        )
    if recipe.test_time_flips and recipe.flips == "none":
        raise ValueError("--test-time-flips averages over the views of --flips, which are none")
    if recipe.findings is not None and recipe.test_time_flips:
        raise ValueError("--test-time-flips averages class decisions; with --findings there are none")
    if not frozen and recipe.unfreeze_epochs >= recipe.epochs:
        raise ValueError(
            f"--unfreeze-epochs {recipe.unfreeze_epochs}: the backbone would never train in {recipe.epochs} "
            "epochs; give fewer, or 0 to train all at once"
        )

    def made(spec):
        own = {} if frozen else {"trained_stages": recipe.trained_stages, "batch_norm": recipe.batch_norm}
        model = models.build(
            spec.name,
            num_labels=spec.num_labels,
            head="sigmoid" if spec.task == "multilabel" else "softmax",
            image_size=spec.image_size,
            backbone=recipe.backbone,
            mode=recipe.mode,
            **own,
        )
        if not frozen:
            _check_unfreezing(recipe, model)
        return model

    def build(spec):
        model = made(spec)
        if recipe.weights != "none":
            models.load_backbone_weights(model, recipe.backbone, recipe.weights)
        return model

    def optimizer(steps, model):
        from training.optimizer import CLIP_NORM, StagedAdamW, stage_rates, warm_adamw, warm_cosine

        if frozen:
            return warm_adamw(recipe, steps)
        factors, first_steps = stage_rates(
            model,
            models.backbone_stages(model),
            recipe.backbone_rate,
            recipe.stage_decay,
            recipe.unfreeze_epochs * steps,
        )
        own = {"weight_decay": recipe.weight_decay, "global_clipnorm": CLIP_NORM}
        return StagedAdamW(warm_cosine(recipe, steps), factors, first_steps, **own)

    def told(spec):
        model = made(spec)
        trained, total = (
            sum(int(variable.shape.num_elements()) for variable in variables)
            for variables in (model.trainable_variables, model.variables)
        )
        stages = len(models.backbone_stages(model))
        parameters = f"{trained:,} of {total:,} parameters are trained"
        return f"{recipe.backbone} in {stages} stages, {recipe.mode}: {parameters}"

    return ClassifierTask(
        name="transfer",
        model="transfer",
        kind="multiclass" if recipe.findings is None else "multilabel",
        label_column=recipe.label_column,
        labels=() if recipe.findings is None else findings.parse(recipe.findings),
        phantom_kind="fillet" if recipe.findings is None else "thorax",
        image_size=(side, side),
        build=build,
        optimizer=optimizer,
        augment=lambda: augmentation.film_layers(recipe),
        min_side=SMALLEST_FILM,
        test_time_flips=recipe.flips if recipe.test_time_flips else "none",
        frozen_features=frozen,
        views=recipe.augment if frozen else 0,
        standardize=frozen and recipe.standardize,
        told=told,
    )


def _check_unfreezing(recipe, model):
    """Raises ValueError where a stage that is to be trained would never begin."""
    from kxray import models
    from training.optimizer import stage_rates

    _, begins = stage_rates(model, models.backbone_stages(model), unfreeze_steps=recipe.unfreeze_epochs)
    every, last = recipe.unfreeze_epochs, max(begins.values(), default=0)
    if every and last >= recipe.epochs:
        stages, begun = last // every, (recipe.epochs - 1) // every
        raise ValueError(
            f"--unfreeze-epochs {every}: the {stages} trained stages of {recipe.backbone} begin one by one, "
            f"the last after {last} epochs, so {stages - begun} would never train in {recipe.epochs} epochs; "
            f"give more than {last} epochs, fewer --unfreeze-epochs, or --trained-stages {begun}"
        )


def check_mode(mode, given) -> None:
    """Raises ValueError for options given at the shell that say nothing in a mode."""
    for other, names in OF_MODE.items():
        foreign = [f"--{name.replace('_', '-')}" for name in names if given.get(name) is not None]
        if other != mode and foreign:
            raise ValueError(f"{', '.join(foreign)}: only with --mode {other}, and this is --mode {mode}")


def run(recipe, given):
    if not recipe.resume:
        check_mode(recipe.mode, given)
        if recipe.unfreeze_epochs and recipe.mode == "fine_tune":
            # How many stages there are, the network says.
            shell.load_tensorflow()
            task = task_of(recipe)
            task = dataclasses.replace(task, labels=task.labels or ("a", "b"))
            task.told(task.spec)
        if recipe.weights == "imagenet" and not recipe.dry_run:
            from kxray import models

            # Found out now, not after the films are read.
            models.fetch_imagenet(recipe.backbone)
    return fit_classifier(recipe, given, task_of)
