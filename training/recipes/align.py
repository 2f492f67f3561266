"""Learns to bring chest films upright, centred and to one size, without labels; and to refuse what is none.

\b
  python -m training.fit align --phantoms 600
      trains on generated films in all poses: no data needed
  python -m training.fit align --data DIR
      trains on the frontal films of a folder; lateral films in it are learned to be refused

A template is made of the training films by groupwise registration. A network then learns to find how the
chest lies on a film (rotation, scale, shift) from films that were moved by known motions, and to agree with
the template; and to tell frontal chests from everything else. The run folder holds model.keras, which
training.align and the recipe masked_densenet take, template.npz and template.png, and a report with films
before and after.

Measured on films of held-out patients, moved by up to 20 degrees, a factor of 1.25 and a tenth of the width:
what is left of the motion, and which films are refused. Median on 600 phantoms: 0.3
degrees, 0.8% and 0.4% of the width, in 3.4 minutes of processor time; on 691 films of NIH ChestX-ray14 with
--epochs 60: 0.5 degrees, 0.8% and 0.5%. benchmarks/align.py sets it beside classical registration.
"""

from dataclasses import dataclass

from training.options import option

PRESETS = {
    "smoke": {
        "phantoms": 60,
        "image_size": 64,
        "size": 32,
        "width": 4,
        "epochs": 2,
        "template_films": 12,
        "foreign": 32,
    },
}


@dataclass(frozen=True)
class Recipe:
    data: str | None = option(
        None, "Folder of films, or a manifest CSV. Left out, films are generated (see --phantoms)."
    )
    out: str | None = option(None, "Run folder; the next free one under runs/ by default.")
    resume: bool = option(
        False, "Continue the interrupted run in --out with the options it was started with."
    )
    dry_run: bool = option(False, "Check films and options, print what would be done, and stop.")
    phantoms: int = option(600, "Generated films, where --data is left out.", low=60)
    poses: str = option(
        "wide", "How generated films lie: nearly upright, or in all poses.", choices=("natural", "wide")
    )
    films: int = option(2000, "Films that are used at most, drawn at random.", low=40)
    image_size: int = option(256, "Side of the films that the aligner takes, pixels.", low=32, high=2048)
    size: int = option(64, "Side of the copy that the network looks at, a multiple of 16.", low=32, high=128)
    width: int = option(16, "Filters of the network's first convolution.", low=1, high=256)
    steps: int = option(2, "Looks at a film, each at the film as aligned by the last.", low=1, high=8)
    epochs: int = option(40, "Epochs, of 40 steps each.", low=1)
    batch_size: int = option(
        16, "Films a step, each in two poses, beside as many pictures to refuse.", low=2, high=512
    )
    learning_rate: float = option(2e-3, "The optimizer's highest rate.", low=1e-8, high=1.0)
    template_films: int = option(150, "Films that make the template, at most.", low=10)
    foreign: int = option(800, "Generated pictures to refuse.", low=8)
    seed: int = option(0, "Of the split, the weights, and all draws.", low=0)
    workers: int | None = option(None, "Decoding workers; one a core by default.", low=1)
    skip_bad: bool = option(
        False, "Leave out broken rows and unreadable films, and list them in skipped.csv."
    )
    preset: str | None = option(
        None, "A named set of options; what is given beside it wins.", choices=tuple(PRESETS)
    )


def run(recipe, given):
    from training.aligning import align_job

    return align_job.run(recipe, given)
