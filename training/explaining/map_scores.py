"""Maps scored against masks: one film at a time, and a set of films with intervals."""

from kxray import metrics
from training.explaining.explained_table import SCORES

_SHOWN = dict(zip(SCORES, ("pointing game", "mass inside", "IoU at half maximum"), strict=True))


def score(heatmap, mask) -> dict:
    """The cells of one film: its map, stretched to the film (bilinear), against the film's mask.

    Args:
        heatmap: float32 (h, w), signed.
        mask: bool (H, W).

    Returns:
        dict of texts; empty ones for an empty mask.
    """
    from kxray.io.resize import resize

    if not mask.any():
        return {}
    maps, masks = resize(heatmap, mask.shape)[None], mask[None]
    measures = (metrics.pointing_game, metrics.mass_inside, metrics.iou_at)
    return {name: f"{measure(maps, masks)[0]:.9g}" for name, measure in zip(SCORES, measures, strict=True)}


def summary(rows, method, target) -> dict | None:
    """Mean scores with 95% intervals over resampled patients, of all films and by explained label.

    Args:
        rows: of explained.csv, as dicts of texts.
        method, target: how they were explained.

    Returns:
        JSON values; None where no film has a mask.
    """
    scored = [row for row in rows if row[SCORES[0]]]
    if not scored:
        return None
    readable = [row for row in rows if not row["reason"]]
    labels = sorted({row["explained_label"] for row in scored})
    by_label = {label: _means([row for row in scored if row["explained_label"] == label]) for label in labels}
    scores = {
        "method": method,
        "target": target,
        "films_scored": len(scored),
        "films_without_mask": len(readable) - len(scored),
        "films_unreadable": len(rows) - len(readable),
        **_means(scored),
        "by_explained_label": by_label,
    }
    scores["conditions"] = (
        f"{method} of the {target} label, {len(scored)} films with a mask of {scores['patients']} patients, "
        f"95% intervals over resampled patients; {scores['films_without_mask']} films without a mask are "
        "left out"
    )
    means = ", ".join(
        f"{shown} {scores[name]['value']:.3f} [{scores[name]['low']:.3f}, {scores[name]['high']:.3f}]"
        for name, shown in _SHOWN.items()
    )
    scores["told"] = f"{means}; {scores['conditions']}"
    return scores


def _means(rows):
    # Films of unknown patients stand for themselves.
    patients = [row["patient_id"] or f"film {row['path']}" for row in rows]
    means = {"films": len(rows), "patients": len(set(patients))}
    for name in SCORES:
        mean = metrics.summarise([float(row[name]) for row in rows], patients)
        means[name] = {key: mean[key] for key in ("value", "low", "high")}
    return means
