"""Learns to give films back through a narrow code, along which kxray.explain.latent_shift changes them.

\b
  python -m training.fit autoencoder --classifier RUN
      trains on the training films of a classifier's run, at its film size: what counterfactuals of that
      classifier by latent shift need. Its test films are never seen
  python -m training.fit autoencoder --data DIR --image-size 128
      trains on any folder of films, labelled or not
  python -m training.fit autoencoder --phantoms 600

No label is used. The loss is mean |error| and 1 - SSIM, or the squared error (--loss); the weights of the
lowest validation loss are kept. Told of test films: PSNR, SSIM and mean |error| with intervals over patients;
with --classifier also how often the classifier says the same of a film and of what it is given back as. Where
it does not, the code has lost what the classifier saw, and a latent shift explains nothing of that film: give
a wider code (--latent, or --depth less by 1) or more epochs.

Expected of the 160 test films of 800 thorax phantoms at 64 pixels, --width 16 --latent 32 --epochs 25, one
seed: PSNR 32.1 [31.6, 32.6] dB, SSIM 0.950 [0.948, 0.953], mean |error| 0.018, and a classifier of effusions
and masses decides the same of 96.9% [95.2%, 98.4%], in 5 minutes on one of two busy cores.
"""

from dataclasses import dataclass

from training.options import option

PRESETS = {
    "smoke": {
        "phantoms": 48,
        "image_size": 32,
        "width": 4,
        "latent": 4,
        "depth": 2,
        "epochs": 2,
        "batch_size": 8,
    },
}


@dataclass(frozen=True)
class Recipe:
    data: str | None = option(
        None, "Folder of films, or a manifest CSV; no labels are needed. Left out, films are generated."
    )
    classifier: str | None = option(
        None, "Run of a classifier: its films, its split and its film size, unless --data names others."
    )
    out: str | None = option(None, "Run folder; the next free one under runs/ by default.")
    resume: bool = option(
        False, "Continue the interrupted run in --out with the options it was started with."
    )
    dry_run: bool = option(False, "Check films and options, print what would be done, and stop.")
    phantoms: int = option(600, "Generated films, without --data and --classifier.", low=24)
    image_size: int | None = option(
        None, "Side of the films in pixels; the classifier's by default, else 64.", low=16, high=2048
    )
    width: int = option(32, "Filters next to the film; twice as many after each stage.", low=1, high=512)
    latent: int = option(64, "Maps of the code.", low=1, high=4096)
    depth: int = option(
        3, "Stages; each halves the side, so that the code is a 2^depth-th of it.", low=1, high=8
    )
    loss: str = option(
        "l1_ssim", "Mean |error| + 1 - SSIM (l1_ssim), or squared error (mse).", choices=("l1_ssim", "mse")
    )
    epochs: int = option(40, "Passes over the training films.", low=1)
    batch_size: int = option(16, "Films a step, over all devices.", low=1)
    learning_rate: float = option(1e-3, "The optimizer's highest rate.", low=1e-8, high=1.0)
    learning_rate_decay: str = option(
        "cosine", "cosine: falls to zero over the run; none: stays.", choices=("cosine", "none")
    )
    warmup: float = option(0.1, "Share of the run in which the rate rises from 0.", low=0.0, high=0.9)
    weight_decay: float = option(1e-4, "AdamW's decoupled weight decay.", low=0.0, high=1.0)
    patience: int = option(
        0, "Stop after so many epochs without a lower validation loss; 0 trains all epochs.", low=0
    )
    flips: str = option("none", "Augmentation: mirror images.", choices=("none", "horizontal", "dihedral"))
    rotation: float = option(5.0, "Augmentation: largest rotation, degrees.", low=0.0, high=180.0)
    shift: float = option(0.04, "Augmentation: largest shift, fraction of the side.", low=0.0, high=0.9)
    zoom: float = option(0.08, "Augmentation: largest change of scale, fraction.", low=0.0, high=0.9)
    brightness: float = option(0.05, "Augmentation: largest shift, share of full range.", low=0.0, high=1.0)
    contrast: float = option(0.1, "Augmentation: largest change, fraction.", low=0.0, high=0.9)
    blur: float = option(0.0, "Augmentation: largest Gaussian blur, pixels.", low=0.0, high=3.0)
    seed: int = option(0, "Of the split, the weights, and the order and augmentation of films.", low=0)
    strategy: str = option(
        "auto",
        "Devices: one (none), all GPUs or logical CPUs (mirrored), or mirrored where there are several GPUs.",
        choices=("auto", "none", "mirrored"),
    )
    mixed_precision: bool = option(False, "Compute in half precision where it is safe.")
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
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


def run(recipe, given):
    from training.autoencoding import ae_job

    return ae_job.run(recipe, given)
