"""Where a model sees a finding, judged by the boxes of films: what its map hits, and what chance hits.

Accuracy at T(IoU) and T(IoBB) is that of Wang et al. (2017), table 3: the map is cut at a fraction of its
largest value, boxes are drawn around the connected regions, and a box of the truth counts as found where one
of them overlaps it by more than T: intersection over union (IoU), or over the area of the map's box (IoBB).
"""

import numpy as np
import pandas as pd

from training.evidence_maps import BATCH, EVIDENCE, MASK_ALONE, MapMaker

# Where a map is cut. Wang et al. (2017) took 60 and 180 of 255.
FRACTIONS = (60 / 255, 0.3, 0.5, 180 / 255)
OVERLAPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
MEASURES = ("iou", "iobb")
# Beside the maps of training.evidence_maps: no map at all.
UNIFORM = "uniform map"
# With fewer boxes of validation films than this, maps are cut at half of their largest value.
FEWEST_BOXES, USUAL_FRACTION = 10, 0.5
RESAMPLES = 1000
_TRUTH = ("position", "path", "patient", "finding", "box", "x", "y", "width", "height")


def boxed_findings(task, films, rows) -> pd.DataFrame:
    """The boxes of some films around findings that they have.

    Args:
        task, films: ClassifierTask of findings, and RunFilms.
        rows: positions of films.

    Returns:
        Table, one row a box: position (of the film), path, patient, finding (its name), box (its number
        among the film's boxes of that finding), x, y (upper left corner), width, height in shares of the
        film's width and height. Boxes of what a film is known not to have are left out, and what lies
        outside of the film.

    Raises:
        kxray.io.FilmError: a film whose header cannot be read; no film is decoded.
    """
    from kxray.io.headers import film_size

    if "boxes" not in films.table.columns:
        return pd.DataFrame(columns=_TRUTH)
    found = []
    table = films.table.loc[films.table.index.intersection(rows, sort=False)]
    columns = (table[name].tolist() for name in ("boxes", "path", "patient_id"))
    for position, cell, path, patient in zip(table.index.tolist(), *columns, strict=True):
        boxes = (
            [box for box in cell if box["finding"] in task.labels] if isinstance(cell, list | tuple) else []
        )
        if not boxes:
            continue
        height, width = film_size(path)
        counts = dict.fromkeys(task.labels, 0)
        for box in boxes:
            name = box["finding"]
            left, right = (_share(box["x"] + far, width) for far in (0, box["width"]))
            top, bottom = (_share(box["y"] + far, height) for far in (0, box["height"]))
            if films.labels[position, task.labels.index(name)] == 0 or right <= left or bottom <= top:
                continue
            place = (left, top, right - left, bottom - top)
            found.append((position, path, patient or f"film {path}", name, counts[name], *place))
            counts[name] += 1
    return pd.DataFrame(found, columns=_TRUTH)


def _share(place, side):
    return min(max(place, 0), side) / side


def localise(model, task, films, rows, progress=None, *, boxes=None) -> pd.DataFrame:
    """Judges the maps of a model on the films that have a box of a finding which it knows.

    The map is the evidence of a model that gives it (`kxray.models.with_evidence`), in the film's frame;
    else multi-scale CAM where the model has it, else Grad-CAM. It is brought to the network's input size.

    Args:
        model: keras.Model from films to probabilities of the task's findings.
        task, films: ClassifierTask of findings, and RunFilms.
        rows: positions of the films to look at; those without boxes are passed over.
        progress: rich Progress with a `facts` field, or None.
        boxes: what `boxed_findings` says of these films, where it is known already.

    Returns:
        Table, one row a box and map. Columns: those of `boxed_findings`; `map`, one of EVIDENCE, MASK_ALONE
        (of models with masks) and UNIFORM; `pointing_game` and `outside_inside_ratio` of the map and all
        boxes of the finding on the film; and for each of FRACTIONS the largest overlap of the box with one
        of the map's, `iou_0.500` and so on (`column_of`).
    """
    boxes = boxed_findings(task, films, rows) if boxes is None else boxes
    pairs = [pair for _, pair in boxes.groupby(["position", "finding"], sort=False)]
    bar = None if progress is None else progress.add_task("localising findings", total=len(pairs), facts="")
    maker = MapMaker(model)
    tables = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        positions = np.array([pair["position"].iloc[0] for pair in batch])
        labels = np.array([task.labels.index(pair["finding"].iloc[0]) for pair in batch])
        (pixels,) = films.inputs.batches(positions, len(positions))
        for name, maps in maker(pixels, labels).items():
            tables += [
                pair.assign(map=name, **_scores(heatmap, pair))
                for pair, heatmap in zip(batch, maps, strict=True)
            ]
        tables += [pair.assign(map=UNIFORM, **_uniform_scores(pixels.shape[1:3], pair)) for pair in batch]
        if bar is not None:
            progress.update(bar, completed=start + len(batch))
    columns = ["pointing_game", "outside_inside_ratio", *_overlap_columns()]
    if not tables:
        return pd.DataFrame(columns=[*_TRUTH, "map", *columns])
    return joined(tables)


def joined(tables) -> pd.DataFrame:
    """Tables one below the other; one without rows has no say in what kind of values a column holds."""
    tables = list(tables)
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def column_of(measure, fraction) -> str:
    """The column of the largest overlap by "iou" or "iobb", of a map that is cut at a fraction."""
    return f"{measure}_{fraction:.3f}"


def _overlap_columns():
    return [column_of(measure, fraction) for fraction in FRACTIONS for measure in MEASURES]


def _pixel_boxes(boxes, shape):
    """float (K, 4): x, y, width, height of boxes in shares of the film, in pixels of a grid."""
    height, width = shape
    return boxes[["x", "y", "width", "height"]].to_numpy(float) * (width, height, width, height)


def _scores(heatmap, boxes) -> dict:
    """The columns of the boxes of one finding on one film."""
    from kxray import metrics

    heatmap = np.asarray(heatmap, float)
    if not np.isfinite(heatmap).all():
        # A map that is not one hits nothing.
        heatmap = np.zeros(heatmap.shape)
    true = _pixel_boxes(boxes, heatmap.shape)
    maps, masks = heatmap[None], metrics.boxes_mask(true, heatmap.shape)[None]
    scores = {
        "pointing_game": metrics.pointing_game(maps, masks)[0],
        "outside_inside_ratio": metrics.outside_inside_ratio(maps, masks)[0],
    }
    corners = np.concatenate([true[:, :2], true[:, :2] + true[:, 2:]], axis=1)
    for fraction in FRACTIONS:
        (found,) = metrics.region_boxes(maps, fraction)
        for measure in MEASURES:
            overlaps = metrics.box_overlaps(found, corners, measure)
            scores[column_of(measure, fraction)] = overlaps.max(axis=0, initial=0.0)
    return scores


def _uniform_scores(shape, boxes):
    """Of a map that is the same everywhere: it points at any pixel, and its only box is the film."""
    from kxray import metrics

    area = (boxes["width"] * boxes["height"]).to_numpy(float)
    inside = metrics.boxes_mask(_pixel_boxes(boxes, shape), shape)
    drawn = {"pointing_game": inside.mean(), "outside_inside_ratio": 1.0}
    return drawn | dict.fromkeys(_overlap_columns(), area)


# From boxes to what is reported


def choose_fractions(validation) -> dict:
    """Where each kind of map is cut, by what finds most boxes of validation films at T(IoU) 0.1 to 0.7.

    Args:
        validation: table of `localise`.

    Returns:
        dict of the kind of map to a fraction of its largest value; USUAL_FRACTION for each where there are
        fewer than FEWEST_BOXES boxes.
    """
    chosen = dict.fromkeys((EVIDENCE, MASK_ALONE, UNIFORM), USUAL_FRACTION)
    for name, rows in validation.groupby("map"):
        if len(rows) >= FEWEST_BOXES:
            found = [
                np.mean([(rows[column_of("iou", fraction)] > overlap).mean() for overlap in OVERLAPS])
                for fraction in FRACTIONS
            ]
            chosen[name] = FRACTIONS[int(np.argmax(found))]
    return chosen


def cut_by(validation, test) -> pd.DataFrame:
    """A table of `localise` with `fraction`, at which each map is cut: chosen on validation films."""
    fractions = choose_fractions(validation)
    return test.assign(fraction=test["map"].map(fractions).astype(float))


def read_table(path) -> pd.DataFrame:
    """A table of `localise` as it was written: a ratio may be undefined, names may look like numbers."""
    texts = dict.fromkeys(("path", "patient", "group", "finding", "map", "row"), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def values_of(table) -> pd.DataFrame:
    """What is averaged over the boxes of one kind of map, one column a score.

    Args:
        table: of `cut_by`.

    Returns:
        Table with the index of `table`: pointing_game and outside_inside_ratio, of the first box of each
        finding on a film (NaN for the others, which share them), and iou_0.1 ... iobb_0.7, 1 where the box is
        found and 0 where it is not.
    """
    first = table["box"].to_numpy() == 0
    values = {
        name: np.where(first, table[name].to_numpy(float), np.nan)
        for name in ("pointing_game", "outside_inside_ratio")
    }
    fractions = table["fraction"].to_numpy(float)
    for measure in MEASURES:
        overlap = np.zeros(len(table))
        for fraction in FRACTIONS:
            cut = np.isclose(fractions, fraction)
            overlap[cut] = table[column_of(measure, fraction)].to_numpy(float)[cut]
        values |= {f"{measure}_{least}": (overlap > least).astype(float) for least in OVERLAPS}
    return pd.DataFrame(values, index=table.index)


def resampled(patients, seed, resamples=RESAMPLES) -> np.ndarray:
    """How often each row counts, float (resamples, N), where whole patients are drawn with replacement."""
    distinct, owner = np.unique(np.asarray(patients, str), return_inverse=True)
    shares = np.full(len(distinct), 1 / len(distinct))
    counts = np.random.default_rng(seed).multinomial(len(distinct), shares, size=resamples)
    return counts[:, owner.reshape(-1)].astype(float)


def weighted_means(values, weights) -> np.ndarray:
    """Means (B,) of values (N,) that count as weights (B, N) say; NaN values do not count."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return weights[:, known] @ values[known] / weights[:, known].sum(axis=1)


def weighted_medians(values, weights) -> np.ndarray:
    """Likewise the medians, of values that may be infinite."""
    known = ~np.isnan(values)
    values, weights = values[known], weights[:, known]
    order = np.argsort(values)
    if not len(order):
        return np.full(len(weights), np.nan)
    summed = weights[:, order].cumsum(axis=1)
    total = summed[:, -1:]
    places = (summed >= total / 2).argmax(axis=1)
    return np.where(total[:, 0] > 0, values[order][places], np.nan)


def with_interval(value, draws) -> dict:
    """{value, low, high}: the middle 95% of the draws; NaN where fewer than half of them are defined.

    Draws may be infinite, and with them the ends.
    """
    draws = np.asarray(draws, float)
    draws = draws[~np.isnan(draws)]
    low = high = np.nan
    if len(draws) >= RESAMPLES / 2:
        # There is nothing between a number and infinity.
        method = "linear" if np.isfinite(draws).all() else "inverted_cdf"
        low, high = np.quantile(draws, [0.025, 0.975], method=method)
    return {"value": float(value), "low": float(low), "high": float(high)}


def summary(table, seed=0) -> dict | None:
    """The scores of a table of `localise`, finding by finding and together, with 95% intervals.

    Args:
        table: of `cut_by`, of test films.
        seed: of the bootstrap, which resamples patients.

    Returns:
        JSON values, or None where no film has a box: films, patients, conditions (in words), overlaps, and by
        kind of map in `maps`: fractions (at which it is cut), all (over all boxes), mean (over the findings
        that have boxes) and findings (by name). Each of these has boxes, pairs (of a film and a finding),
        pointing_game, outside_inside_ratio (its median) and accuracy, by "iou" and "iobb" and by T as text;
        scores are {value, low, high}.
    """
    if not len(table):
        return None
    maps = {}
    for name in (EVIDENCE, MASK_ALONE, UNIFORM):
        rows = table[table["map"] == name].reset_index(drop=True)
        if len(rows):
            maps[name] = {"fractions": sorted(set(rows["fraction"])), **_scored(rows, seed)}
    boxes = table[table["map"] == UNIFORM]
    told = {
        "films": int(boxes["path"].nunique()),
        "patients": int(boxes["patient"].nunique()),
        "overlaps": list(OVERLAPS),
        "maps": maps,
    }
    told["conditions"] = (
        f"{len(boxes)} boxes on {told['films']} test films of {told['patients']} patients; 95% intervals "
        f"over resampled patients, seed {seed}; maps are cut at "
        + ", ".join(
            f"{' or '.join(f'{fraction:.2f}' for fraction in scores['fractions'])} ({name})"
            for name, scores in maps.items()
            if name != UNIFORM
        )
        + " of their largest value"
    )
    return told


def _scored(rows, seed):
    values, weights = values_of(rows), resampled(rows["patient"], seed)
    findings, whole = rows["finding"].to_numpy(), np.ones((1, len(rows)))
    of_findings = {name: np.flatnonzero(findings == name) for name in dict.fromkeys(sorted(findings))}

    def measured(column, chosen, weights):
        mean = weighted_medians if column == "outside_inside_ratio" else weighted_means
        return mean(values[column].to_numpy()[chosen], weights[:, chosen])

    def scores(told):
        flat = {name: told(name) for name in values.columns}
        accuracy = {
            measure: {str(least): flat.pop(f"{measure}_{least}") for least in OVERLAPS}
            for measure in MEASURES
        }
        return {**flat, "accuracy": accuracy}

    def of(chosen):
        counts = {"boxes": len(chosen), "pairs": int((rows["box"].to_numpy()[chosen] == 0).sum())}
        return counts | scores(
            lambda name: with_interval(measured(name, chosen, whole)[0], measured(name, chosen, weights))
        )

    def over_findings(name):
        value, draws = (
            _known_mean(np.stack([measured(name, chosen, drawn) for chosen in of_findings.values()]))
            for drawn in (whole, weights)
        )
        return with_interval(value[0], draws)

    counts = {"boxes": len(rows), "pairs": int((rows["box"] == 0).sum())}
    return {
        "all": of(np.arange(len(rows))),
        "mean": counts | scores(over_findings),
        "findings": {name: of(chosen) for name, chosen in of_findings.items()},
    }


def _known_mean(values):
    """Means (B,) of (findings, B) over the findings that a draw defines."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
