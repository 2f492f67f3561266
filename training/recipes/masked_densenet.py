"""Finds diseases in chest films where they are likely: aligned films, probability masks, evidence maps.

\b
  python -m training.fit masked_densenet --data NIH --preset nih
      learns Atelectasis, Cardiomegaly, Effusion, Infiltration, Mass, Nodule, Pneumonia and Pneumothorax, as
      many of them as the films have. NIH is the folder of ChestX-ray14 (Data_Entry_2017.csv,
      BBox_List_2017.csv, and train_val_list.txt and test_list.txt, which are its split without --folds), or a
      manifest with a column of 0, 1 or nothing (unknown) a finding and a column of boxes
  python -m training.fit masked_densenet --data NIH --cache stream --backbone densenet121
      all 112,120 films, none of which is kept in memory. Before the training only files of validation and
      test films are checked, headers of films with boxes read, and with --align auto 1,200 films decoded
  python -m training.fit masked_densenet --preset phantoms
      generated films, turned by up to 20 degrees, scaled and shifted
  python -m training.fit masked_densenet --data NIH --align runs/align --masks MYMASKS
      the aligner of an earlier run of `align`, and one's own masks: grey PNGs named like the diseases

A film is aligned (--align), and each disease looks at the features by its own probability mask: where the
boxes of the training films say that it is, or anatomy where they are few (--masking). Few boxes also teach
the network where to look (--box-loss). Every training makes its aligner and its masks of its own training
films. The masks are kept in RUN/masks; a disease's evidence map is the served explanation.

Small-data practice as in multiscale_cam: AdamW with warm-up and cosine decay, gradients clipped to norm 1,
mild exposure and blur changes, small turns, shifts and changes of scale (no mirror images: the heart has a
side), batch-norm momentum 0.9, positive films weighed by the training split, the weights of the lowest
validation loss. Which part of it helps: `python -m training.compare masks`.
"""

from dataclasses import dataclass
from pathlib import Path

from kxray.data.conditions import DISEASES
from training import augmentation, findings
from training.backbone_options import check_init, parse_taps
from training.classifier import ClassifierOptions, fit_classifier
from training.masking import Masking
from training.options import option
from training.task import ClassifierTask

PRESETS = {
    "nih": {"backbone": "small_densenet", "image_size": 128, "epochs": 20, "folds": 5},
    "phantoms": {
        "backbone": "small_densenet",
        "image_size": 128,
        "epochs": 25,
        "learning_rate": 2e-3,
        "phantoms": 1500,
    },
    "smoke": {
        "backbone": "small_densenet",
        "image_size": 64,
        "epochs": 1,
        "phantoms": 48,
        "batch_size": 8,
        "findings": "Cardiomegaly,Effusion",
        "align_epochs": 1,
    },
}
SMALLEST_FILM = 32


@dataclass(frozen=True)
class Recipe(ClassifierOptions):
    epochs: int = option(30, "Passes over the training films.", low=1)
    batch_size: int = option(16, "Films a step, over all devices.", low=1)
    findings: str | None = option(
        None,
        "all, or names of finding columns with commas between them; by default those of the eight diseases "
        "that the films have.",
    )
    align: str = option(
        "auto",
        "What aligns films: auto (learned from the training films), a run of the recipe align, or none.",
    )
    align_epochs: int = option(40, "auto: epochs of the aligner, of 40 steps each.", low=1)
    masking: str = option(
        "masks",
        "Where diseases are looked for: masks (where they are likely), uniform (anywhere, by the same "
        "attention), none (pooling over the whole film).",
        choices=("masks", "uniform", "none"),
    )
    masks: str | None = option(
        None, "Folder of grey PNGs named like diseases, which replace the masks of these."
    )
    box_share: float = option(
        1.0, "Share of the training films with boxes whose boxes are used.", low=0.0, high=1.0
    )
    box_loss: float = option(
        0.5,
        "Weight in the loss of how far evidence is from filling its box, mean over the films of a step that "
        "have one; 0: boxes only make masks.",
        low=0.0,
    )
    floor: float = option(0.1, "What a mask leaves visible where the disease never is.", low=0.001, high=1.0)
    backbone: str = option(
        "densenet121", "Network: densenet121, small_densenet, or another that multiscale_cam takes."
    )
    taps: str = option("1", "How many of the last stages vote, or their names: block3,block4.")
    image_size: int = option(256, "Side of the network's input in pixels.", low=1, high=2048)
    init: str | None = option(
        None,
        "Starting weights of the backbone: a run folder, a .keras file, a .weights.h5 file of "
        "keras.applications, or imagenet (downloaded). Random by default.",
    )
    sensitivity: float | None = option(
        None,
        "Share of the films with a disease that its threshold finds, on validation films; by default the "
        "threshold of the largest sensitivity + specificity.",
        low=0.01,
        high=1.0,
    )
    poses: str = option(
        "wide",
        "How generated chests lie on their films: wide (turned, scaled and shifted) or natural.",
        choices=("wide", "natural"),
    )
    learning_rate: float = option(1e-3, "The optimizer's highest rate.", low=1e-8, high=1.0)
    warmup: float = option(0.1, "Share of the run in which the rate rises from 0.", low=0.0, high=0.9)
    weight_decay: float = option(1e-4, "AdamW's decoupled weight decay.", low=0.0, high=1.0)
    batch_norm_momentum: float = option(
        0.9,
        "Of the moving statistics; with few steps an epoch, Keras's 0.99 lags behind.",
        low=0.0,
        high=0.999,
    )
    rotation: float = option(5.0, "Augmentation: largest rotation, degrees.", low=0.0, high=180.0)
    shift: float = option(0.04, "Augmentation: largest shift, fraction of the side.", low=0.0, high=0.9)
    zoom: float = option(0.08, "Augmentation: largest change of scale, fraction.", low=0.0, high=0.9)
    brightness: float = option(0.08, "Augmentation: largest shift, share of full range.", low=0.0, high=1.0)
    contrast: float = option(0.2, "Augmentation: largest change, fraction.", low=0.0, high=0.9)
    blur: float = option(0.5, "Augmentation: largest Gaussian blur, pixels.", low=0.0, high=3.0)
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )

    @property
    def flips(self):
        return "none"


def task_of(recipe) -> ClassifierTask:
    from kxray import models

    side, taps = recipe.image_size, parse_taps(recipe.taps)
    models.check_backbone(recipe.backbone, taps, (side, side))
    check_init(recipe.init)
    if recipe.align not in ("auto", "none") and not Path(recipe.align).exists():
        raise ValueError(f"--align {recipe.align}: expected auto, none, or a run of the recipe align")
    if recipe.masks is not None and recipe.masking != "masks":
        raise ValueError(f"--masks {recipe.masks}: only with --masking masks, this is {recipe.masking}")
    if recipe.masks is not None and not Path(recipe.masks).is_dir():
        raise ValueError(f"--masks {recipe.masks}: no such folder of pictures")

    def build(spec):
        own = {}
        if recipe.align not in ("auto", "none"):
            align = models.load_aligner(recipe.align).get_layer("align")
            own = {f"align_{field}": getattr(align, field) for field in ("size", "width", "steps")}
        model = models.build(
            spec.name,
            num_labels=spec.num_labels,
            image_size=spec.image_size,
            backbone=recipe.backbone,
            taps=taps,
            masking=recipe.masking,
            align=recipe.align != "none",
            floor=recipe.floor,
            head="sigmoid",
            batch_norm_momentum=recipe.batch_norm_momentum,
            **own,
        )
        if recipe.init is not None:
            models.load_backbone_weights(model, recipe.backbone, recipe.init)
        return model

    def optimizer(steps, model):
        from training.optimizer import warm_adamw

        return warm_adamw(recipe, steps)

    return ClassifierTask(
        name="masked_densenet",
        model="masked_densenet",
        kind="multilabel",
        label_column="label",
        labels=() if recipe.findings is None else findings.parse(recipe.findings),
        phantom_kind="thorax",
        image_size=(side, side),
        build=build,
        optimizer=optimizer,
        augment=lambda: augmentation.film_layers(recipe),
        min_side=SMALLEST_FILM,
        preferred=() if recipe.findings is not None else DISEASES,
        phantom_poses=recipe.poses,
        sensitivity=recipe.sensitivity,
        masking=Masking(recipe),
    )


def run(recipe, given):
    return fit_classifier(recipe, given, task_of)
