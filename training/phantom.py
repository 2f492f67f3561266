"""Writes synthetic films: python -m training.phantom --kind thorax --count 1000 --out DIR"""

import time
from pathlib import Path

import click

from training.shell import program

EXAMPLES = """
Writes synthetic films with known truth: chest films (a 3-D thorax projected at the angle of the view, with
findings, masks and boxes) or patches of fish fillet (with bones of three calibres). DIR gets films/, masks/,
manifest.csv and contact_sheet.png, and is read by every program that takes --data.

\b
Examples
  a thousand chest films, six in ten frontal, about half of the patients with findings:
    python -m training.phantom --kind thorax --count 1000 --out phantoms
  lateral films only, as DICOM:
    python -m training.phantom --kind thorax --count 50 --views lateral --format dicom --out laterals
  nodules and masses on strongly turned, zoomed and shifted films:
    python -m training.phantom --kind thorax --count 500 --findings Nodule,Mass --poses wide --out nodules
  fish fillets, half of them with bones:
    python -m training.phantom --kind fillet --count 400 --out fillets

The same seed gives the same films on every machine, film by film: a run that was interrupted continues when
the same command is given again, and a larger --count makes a finished folder longer.
"""


def _names(context, parameter, value):
    return tuple(name.strip() for name in value.split(",") if name.strip())


@click.command(
    help=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option("--kind", required=True, help="thorax or fillet.")
@click.option("--count", type=int, default=1000, show_default=True, help="Number of films.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--size", type=int, help="Side of the film in pixels.  [default: 256 thorax, 100 fillet]")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed gives other films.")
@click.option(
    "--format", "file_format", default="png", show_default=True, help="png (16 bits) or dicom (12 bits)."
)
@click.option(
    "--views", default="frontal,lateral", show_default=True, callback=_names, help="frontal, lateral or both."
)
@click.option(
    "--lateral-fraction", type=float, default=0.4, show_default=True, help="Share of lateral films, if both."
)
@click.option(
    "--findings",
    default="random",
    show_default=True,
    help="none, random, or names to draw from, with commas between them.",
)
@click.option(
    "--poses",
    default="natural",
    show_default=True,
    help="natural, or wide: turned by up to 20 degrees, scaled 0.8 to 1.25, shifted by up to 10%.",
)
@click.option("--workers", type=int, help="Processes.  [default: the cores of this machine]")
@program
def main(kind, count, out, size, seed, file_format, views, lateral_fraction, findings, poses, workers):
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from kxray.data.phantom import Mix, write_phantoms

    if findings not in ("none", "random"):
        findings = _names(None, None, findings)
    mix = Mix(
        size=size,
        views=views,
        lateral_fraction=lateral_fraction,
        findings=findings,
        poses=poses,
        format=file_format,
    )
    started, before = time.perf_counter(), []
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns)
    task = bar.add_task("films", total=max(count, 1))

    def progress(done):
        if not before:  # only now are the options known to be good
            before.append(done)
            bar.start()
        bar.update(task, completed=done)

    try:
        manifest = write_phantoms(out, kind, count, seed, mix=mix, workers=workers, progress=progress)
    finally:
        if before:
            bar.stop()
    seconds = time.perf_counter() - started
    written = count - before[0]
    _contact_sheet(manifest)
    kept = f" ({before[0]} were there already)" if before[0] else ""
    click.echo(
        f"{count} {kind} films{kept}: {written} written in {seconds:.1f} s, "
        f"{written / seconds:.0f} films/s, {manifest}"
    )


def _contact_sheet(manifest, columns=8, rows=4):
    """Draws the first films with their boxes into contact_sheet.png beside the manifest."""
    import csv
    import json

    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    import kxray

    with open(manifest, encoding="utf-8", newline="") as file:
        films = [row for row, _ in zip(csv.DictReader(file), range(columns * rows), strict=False)]
    rows = -(-len(films) // columns)
    figure = Figure(figsize=(columns * 1.6, rows * 1.75), facecolor="white")
    for axes, film in zip(np.ravel(figure.subplots(rows, columns, squeeze=False)), films, strict=False):
        axes.imshow(kxray.read_image(manifest.parent / film["path"]).pixels, cmap="gray", vmin=0, vmax=1)
        for box in json.loads(film["boxes"] or "[]"):
            corner = (box["x"] - 0.5, box["y"] - 0.5)
            axes.add_patch(
                Rectangle(corner, box["width"], box["height"], fill=False, edgecolor="gold", lw=0.8)
            )
        found = [name for name in film if film[name] == "1" and name[:1].isupper()]
        title = film["view"] if "view" in film else f"{film['label']} {film['calibre']}"
        axes.set_title(" ".join([title, *found]), fontsize=6, pad=2)
    for axes in figure.axes:
        axes.set_axis_off()
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.96, wspace=0.03, hspace=0.12)
    temporary = manifest.with_name(".contact_sheet.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(manifest.with_name("contact_sheet.png"))


if __name__ == "__main__":
    main()
