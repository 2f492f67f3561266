"""The part of a report that says where a model sees findings, and shows it on films."""

import dataclasses
from pathlib import Path

import numpy as np

from training import localising
from training.evidence_maps import EVIDENCE, MASK_ALONE, MapMaker
from training.localising import MEASURES, OVERLAPS
from training.report.plots import inline_films

MOST_EXAMPLES = 8
HEADLINE_OVERLAP = "0.3"
# Of fewer, the interval of a bootstrap is too narrow to say anything.
FEWEST_PATIENTS = 10


@dataclasses.dataclass(frozen=True)
class ExampleFilm:
    """One row of the picture: a finding on a film that has a box around it.

    Attributes:
        finding: its name.
        caption: of the film.
        pixels: float (H, W) in [0, 1], the network's input.
        aligned: the same film as it was aligned, or None.
        mask: (H, W), the finding's mask in the aligned frame, or None.
        plain: (H, W) map of a network (or the same one) without masks, in the film's frame.
        evidence: (H, W), likewise with masks.
        boxes: float (K, 4), x, y, width, height in shares of the film.
        fraction: of its largest value, at which the map's own box is drawn.
    """

    finding: str
    caption: str
    pixels: np.ndarray
    aligned: np.ndarray | None
    mask: np.ndarray | None
    plain: np.ndarray
    evidence: np.ndarray
    boxes: np.ndarray
    fraction: float = localising.USUAL_FRACTION


def choose_examples(boxes, labels, seed=0, count=MOST_EXAMPLES):
    """Draws films to show, one of each finding in turn, without looking at any map.

    Args:
        boxes: table of `training.localising.boxed_findings`.
        labels: findings, in the order of the rows.
        seed: of the draw.
        count: most rows.

    Returns:
        List of tables, the boxes of one finding on one film each.
    """
    random = np.random.default_rng(seed)
    turns = []
    for place, name in enumerate(labels):
        pairs = [pair for _, pair in boxes[boxes["finding"] == name].groupby("position")]
        turns += [(turn, place, pairs[drawn]) for turn, drawn in enumerate(random.permutation(len(pairs)))]
    chosen = sorted(turns, key=lambda turn: turn[:2])[:count]
    return [pair for _, _, pair in sorted(chosen, key=lambda turn: (turn[1], turn[0]))]


def example_films(model, task, films, pairs, fraction=localising.USUAL_FRACTION) -> list[ExampleFilm]:
    """What `example_rows` draws, by one model: its maps with its masks, and as if it had none.

    Args:
        model, task, films: as in `training.localising.localise`.
        pairs: of `choose_examples`.
        fraction: at which the map's own box is drawn.
    """
    if not pairs:
        return []
    maker = MapMaker(model)
    positions = np.array([pair["position"].iloc[0] for pair in pairs])
    labels = np.array([task.labels.index(pair["finding"].iloc[0]) for pair in pairs])
    pixels = np.concatenate(list(films.inputs.batches(positions, len(positions))))
    evidence = maker(pixels, labels)[EVIDENCE]
    plain = maker.without_masks(pixels, labels) if maker.attends else evidence
    outputs = maker.outputs(pixels)
    aligned, masks = outputs.get("aligned"), outputs.get("mask_aligned")
    return [
        ExampleFilm(
            finding=pair["finding"].iloc[0],
            caption=str(pair["path"].iloc[0]).replace("\\", "/").rsplit("/", 1)[-1][-24:],
            pixels=pixels[row, ..., 0],
            aligned=None if aligned is None else aligned[row, ..., 0],
            mask=None if masks is None else masks[row, ..., labels[row]],
            plain=plain[row],
            evidence=evidence[row],
            boxes=pair[["x", "y", "width", "height"]].to_numpy(float),
            fraction=fraction,
        )
        for row, pair in enumerate(pairs)
    ]


def save_examples(path, examples) -> None:
    """Keeps examples in an .npz file, whose folder is made."""
    from kxray.io.files import replacing

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {}
    for number, example in enumerate(examples):
        for name, value in dataclasses.asdict(example).items():
            if value is not None:
                kept[f"{number}_{name}"] = value
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, count=len(examples), **kept)


def load_examples(path) -> list[ExampleFilm]:
    """What `save_examples` kept."""
    with np.load(path) as kept:
        rows = [
            {
                field.name: kept[f"{number}_{field.name}"]
                for field in dataclasses.fields(ExampleFilm)
                if f"{number}_{field.name}" in kept
            }
            for number in range(int(kept["count"]))
        ]
    return [
        ExampleFilm(
            **{"aligned": None, "mask": None, **row}
            | {name: row[name].item() for name in ("finding", "caption", "fraction")}
        )
        for row in rows
    ]


def example_rows(examples, plain="map without masks") -> str | None:
    """The picture: film, aligned film, mask, map without masks, evidence with masks; true boxes in gold.

    Args:
        examples: list of ExampleFilm.
        plain: what the map without masks is of.

    Returns:
        An inline picture, or None without examples.
    """
    from matplotlib.figure import Figure

    from kxray import metrics
    from kxray.io.overlay import overlay

    if not examples:
        return None
    figure = Figure(figsize=(9.6, 2.12 * len(examples) + 0.1))
    axes = figure.subplots(len(examples), 5, squeeze=False)
    margin = 0.42 / (2.12 * len(examples) + 0.1)
    figure.subplots_adjust(left=0.03, right=0.995, top=1 - margin, bottom=0.005, wspace=0.04, hspace=0.14)
    titles = ("film", "aligned film", "mask, aligned", plain, "evidence")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8.5)
    for row, film in zip(axes, examples, strict=True):
        height, width = film.pixels.shape
        row[0].imshow(film.pixels, cmap="gray", vmin=0, vmax=1)
        row[0].set_xlabel(film.caption, fontsize=6.5, labelpad=1)
        row[0].set_ylabel(film.finding, fontsize=9)
        if film.aligned is not None:
            row[1].imshow(film.aligned, cmap="gray", vmin=0, vmax=1)
        if film.mask is not None:
            under = film.pixels if film.aligned is None else film.aligned
            row[2].imshow(under, cmap="gray", vmin=0, vmax=1)
            row[2].imshow(film.mask, cmap="magma", vmin=0, vmax=1, alpha=0.55, extent=_extent(under))
        for axis, heatmap in ((row[3], film.plain), (row[4], film.evidence)):
            axis.imshow(overlay(film.pixels, heatmap))
        for axis in (row[0], row[3], row[4]):
            for box in film.boxes * (width, height, width, height):
                _draw(axis, box, "gold")
        (found,) = metrics.region_box(np.asarray(film.evidence)[None], film.fraction)
        if found[0] >= 0:
            _draw(row[4], (*found[:2], *(found[2:] - found[:2])), "deepskyblue")
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
    return inline_films(figure)


def _extent(pixels):
    height, width = pixels.shape
    return (-0.5, width - 0.5, height - 0.5, -0.5)


def _draw(axis, box, colour):
    from matplotlib.patches import Rectangle

    x, y, width, height = box
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.3))


def section(scores, examples, plain="map of the same network without its masks", seen=False) -> dict:
    """What `_localisation.html.j2` shows, to be given to a template as `localisation`.

    Args:
        scores: of `training.localising.summary`, or None where no test film has a box.
        examples: list of ExampleFilm.
        plain: see `example_rows`.
        seen: whether the model whose maps the examples show was trained on their films.

    Returns:
        dict: scores, verdict (in words), overlaps, measures, headline (the T of the first table), picture,
        seen.
    """
    return {
        "scores": scores,
        "verdict": None if scores is None else _verdict(scores),
        "overlaps": [str(overlap) for overlap in OVERLAPS],
        "measures": {measure: name for measure, name in zip(MEASURES, ("IoU", "IoBB"), strict=True)},
        "headline": HEADLINE_OVERLAP,
        "picture": example_rows(examples, plain),
        "seen": seen,
    }


def _verdict(scores) -> str:
    """Whether the map says more of the place than what sees nothing of the finding."""
    maps = scores["maps"]
    own = maps[EVIDENCE]["all"]["pointing_game"]
    others = {name: kind["all"]["pointing_game"]["value"] for name, kind in maps.items() if name != EVIDENCE}
    name, best = max(others.items(), key=lambda other: other[1])
    # A mask is laid by the pose, which is seen on the film.
    how = "without what is in the lungs" if name == MASK_ALONE else "without looking at the film"
    told = f"The map's highest point is in a box in {own['value']:.3f}"
    patients = scores["patients"]
    if patients < FEWEST_PATIENTS or not np.isfinite([own["low"], own["high"]]).all():
        return f"{told} of cases, the {name} reaches {best:.3f} {how}; too few patients ({patients}) to tell."
    told += f" [{own['low']:.3f}, {own['high']:.3f}] of cases"
    if own["low"] > best:
        return f"{told}, more than the {name} reaches {how} ({best:.3f})."
    if own["high"] < best:
        return f"{told}, less than the {name} reaches {how} ({best:.3f})."
    return f"{told}; the {name} reaches {best:.3f} {how}, which is within the interval."
