"""The columns of a table of explanation methods: what each metric is, and how a batch of maps is scored."""

import dataclasses

import numpy as np

from kxray import metrics
from kxray.metrics.segmentation import overlaps

PLACES, PERTURBATION, STATISTICS = "places", "perturbation", "statistics"
# Every perturbation takes so many steps, whatever the film's size; patches are a sixteenth of its side.
STEPS, PATCHES_A_SIDE = 16, 16
RADIUS, DRAWS = 0.02, 3
OVERLAPS = ("both_background", "either_background", "both_foreground", "either_foreground")
KEPT = tuple(f"kept_{step}0" for step in range(1, 10))


@dataclasses.dataclass(frozen=True)
class Metric:
    """One column of the table.

    Attributes:
        title: as a heading.
        group: what it asks for: "places" need a mask.
        better: "high", "low" or "" where neither is.
        told: what it means, in one line.
        source: author and year.
        statistic: how films are summed up: "mean", "median", or "pooled" over the pixels of all films.
    """

    title: str
    group: str
    better: str
    told: str
    source: str
    statistic: str = "mean"


METRICS = {
    "outside_inside_ratio": Metric(
        "outside / inside",
        PLACES,
        "low",
        "mean positive relevance outside the mask over the mean inside; below 1 is good, 1 is chance. The "
        "median over films, because a film with nothing inside is infinite",
        "Lapuschkin et al., 2016",
        "median",
    ),
    "mean_iou": Metric(
        "mIOU",
        PLACES,
        "high",
        "the map above its own mean, taken as a segmentation: intersection over union of foreground and of "
        "background, pooled over all films, averaged",
        "Chefer et al., 2021",
        "pooled",
    ),
    "pointing_game": Metric(
        "pointing game",
        PLACES,
        "high",
        "share of films whose largest value lies in the mask",
        "Zhang et al., 2016",
    ),
    "mass_inside": Metric(
        "mass inside",
        PLACES,
        "high",
        "share of the positive relevance that lies inside",
        "Arras et al., 2022",
    ),
    "rank_accuracy": Metric(
        "rank accuracy",
        PLACES,
        "high",
        "of as many most relevant pixels as the mask has, the share that lies inside",
        "Arras et al., 2022",
    ),
    "box_iou_0.1": Metric(
        "IoU > 0.1",
        PLACES,
        "high",
        "share of the mask's boxes that a box of the map (from half of its maximum) meets with IoU above 0.1",
        "Wang et al., 2017",
    ),
    "box_iou_0.3": Metric("IoU > 0.3", PLACES, "high", "the same, above 0.3", "Wang et al., 2017"),
    "box_iobb_0.5": Metric(
        "IoBB > 0.5",
        PLACES,
        "high",
        "the same with the intersection over the area of the map's box, above 0.5: one speck inside is "
        "enough, so read it beside the number of false boxes",
        "Wang et al., 2017",
    ),
    "false_boxes": Metric(
        "false boxes",
        PLACES,
        "",
        "boxes of the map a film that overlap none of the mask's by an IoU of 0.1; no box, none false",
        "",
    ),
    "negative_perturbation": Metric(
        "negative perturbation",
        PERTURBATION,
        "high",
        "area under the share of films that keep their label while 10, 20 ... 90% of the film, the least "
        "relevant first, turn 0",
        "Chefer et al., 2021; Nam et al., 2020",
    ),
    "aopc_gap": Metric(
        "MoRF - LeRF",
        PERTURBATION,
        "high",
        f"patches (a sixteenth of the side) turn to the film's minimum in {STEPS} steps: area over the curve "
        "of the probability, most relevant first minus least relevant first; 0 is chance",
        "Samek et al., 2017",
    ),
    "aopc_most_first": Metric(
        "AOPC MoRF", PERTURBATION, "high", "its first half: most relevant first", "Samek et al., 2017"
    ),
    "insertion": Metric(
        "insertion",
        PERTURBATION,
        "high",
        f"area under the probability while a blurred film gets its pixels back in {STEPS} steps, most "
        "relevant first",
        "Petsiuk et al., 2018",
    ),
    "deletion": Metric(
        "deletion",
        PERTURBATION,
        "low",
        f"area under the probability while pixels turn 0 in {STEPS} steps, most relevant first",
        "Petsiuk et al., 2018",
    ),
    "completeness_error": Metric(
        "completeness error",
        STATISTICS,
        "low",
        "|sum of the map - what it should add up to| over the latter: the logit (LRP, RAP), or its "
        "difference to the baseline's (integrated gradients); the median over films",
        "Bach et al., 2015; Sundararajan et al., 2017",
        "median",
    ),
    "max_sensitivity": Metric(
        "max-sensitivity",
        STATISTICS,
        "low",
        f"largest relative change of the map over {DRAWS} noisy copies of the film, uniform within {RADIUS}",
        "Yeh et al., 2019",
    ),
    "complexity": Metric(
        "complexity",
        STATISTICS,
        "",
        "entropy of |map| in nats; low: few pixels explain; neither end is better by itself",
        "Bhatt et al., 2020",
    ),
    "sparseness": Metric(
        "sparseness",
        STATISTICS,
        "",
        "Gini index of |map|; 0: all alike, 1: one pixel",
        "Chalasani et al., 2020",
    ),
}
GROUPS = (PLACES, PERTURBATION, STATISTICS)
SECTIONS = ("speed", "sanity")


def chosen_metrics(text) -> tuple[str, ...]:
    """The metrics and sections that a text such as "places,aopc_gap,speed" names, in table order.

    Raises:
        ValueError: an unknown name.
    """
    known = (*METRICS, *SECTIONS)
    names = set()
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name == "all":
            names |= set(known)
        elif name in GROUPS:
            names |= {metric for metric, facts in METRICS.items() if facts.group == name}
        elif name in known:
            names.add(name)
        else:
            raise ValueError(
                f"unknown metric {name!r}; the known ones are: all, "
                f"{', '.join((*GROUPS, *SECTIONS, *METRICS))}"
            )
    if not names:
        raise ValueError("--metrics names none; take all, or leave it out")
    return tuple(name for name in known if name in names)


def columns_of(names) -> tuple[str, ...]:
    """What is kept of each film for these metrics."""
    columns = [name for name in names if name in METRICS]
    columns += OVERLAPS if "mean_iou" in names else ()
    return (*columns, *(KEPT if "negative_perturbation" in names else ()))


def place_scores(names, maps, masks) -> dict:
    """What the metrics of the group "places" say of maps and masks (N, h, w): name -> float (N,)."""
    scores = {}
    for name, measure in (
        ("outside_inside_ratio", metrics.outside_inside_ratio),
        ("mean_iou", metrics.mean_iou),
        ("pointing_game", metrics.pointing_game),
        ("mass_inside", metrics.mass_inside),
        ("rank_accuracy", metrics.rank_accuracy),
    ):
        if name in names:
            scores[name] = measure(maps, masks)
    if "mean_iou" in names:
        both, either = overlaps(maps, masks)
        scores |= dict(zip(OVERLAPS, (both[:, 0], either[:, 0], both[:, 1], either[:, 1]), strict=True))
    for name, overlap, kind in (
        ("box_iou_0.1", 0.1, "iou"),
        ("box_iou_0.3", 0.3, "iou"),
        ("box_iobb_0.5", 0.5, "iobb"),
    ):
        if name in names:
            scores[name] = metrics.box_hits(maps, masks, overlap, kind)[0]
    if "false_boxes" in names:
        scores["false_boxes"] = metrics.box_hits(maps, masks, 0.1)[1]
    return scores


def perturbation_scores(names, predict, images, maps, labels, thresholds, batch_size) -> dict:
    """What the group "perturbation" says: name -> float (N,).

    Args:
        predict: float32 (n, h, w, 1) -> probabilities (n, L).
        images: float32 (N, h, w, 1); maps: (N, h, w) on their grid.
        labels: int (N,), whose probability is followed.
        thresholds: float (N,), from which a label counts as decided; None where the likeliest one is.
        batch_size: films that the model sees at once.
    """
    scores = {}
    if {"aopc_gap", "aopc_most_first"} & {*names}:
        most, least = (
            metrics.aopc(
                metrics.perturbation_curve(
                    predict, images, grouped_patches(maps, ascending), labels, "minimum", batch_size
                )
            )
            for ascending in (False, True)
        )
        scores |= {"aopc_gap": most - least, "aopc_most_first": most}
    pixels_per_step = -(-maps[0].size // STEPS)
    if "insertion" in names:
        options = (labels, pixels_per_step, "blur", batch_size)
        scores["insertion"] = metrics.insertion(predict, images, maps, *options)[1]
    if "deletion" in names:
        options = (labels, pixels_per_step, "zero", batch_size)
        scores["deletion"] = metrics.deletion(predict, images, maps, *options)[1]
    if "negative_perturbation" in names:
        threshold = None if thresholds is None else 0.5
        found = metrics.negative_perturbation(predict, images, maps, labels, threshold, batch_size=batch_size)
        right = found.right if thresholds is None else found.scores >= np.asarray(thresholds)[:, None]
        right = right.astype(float)
        scores["negative_perturbation"] = metrics.area_under(right)
        scores |= dict(zip(KEPT, right.T, strict=True))
    return {name: values for name, values in scores.items() if name in columns_of(names)}


def grouped_patches(maps, ascending):
    """The order in which all patches of a film go in `STEPS` steps, int (N, h, w)."""
    patch = max(1, -(-max(maps.shape[1:]) // PATCHES_A_SIDE))
    order = metrics.patch_order(maps, patch, ascending)
    a_step = -(-int(order.max()) // STEPS)
    return (order - 1) // a_step + 1


def summed_up(name, scores, patients) -> dict:
    """One cell of the table: a metric over films, with a 95% interval over resampled patients.

    Args:
        name: of the metric.
        scores: table with the columns of `columns_of`, one row a film that was asked.
        patients: (N,).

    Returns:
        dict: value, low, high (of the metric's statistic; NaN where no film has a score), mean, median, films
        (with a finite score), undefined (NaN: an empty mask, a map that is not finite), infinite.
    """
    values = scores[name].to_numpy(float)
    told = metrics.summarise(values, patients)
    summary = {**told, "mean": told["value"]}
    statistic = METRICS[name].statistic
    known = ~np.isnan(values)
    if statistic == "median" and known.any():
        order = np.argsort(values[known], kind="stable")

        # Of the place of the median, not of its value: a median may be infinite.
        def place(weights):
            passed = weights[:, order].cumsum(axis=1)
            return (passed < passed[:, -1:] / 2).sum(axis=1)

        low, high = metrics.patient_bootstrap(place, np.asarray(patients)[known])
        ranked = values[known][order]
        ends = [float(ranked[round(end)]) for end in (low, high)]
        summary |= {"value": told["median"], "low": ends[0], "high": ends[1]}
    if statistic == "pooled" and known.any():
        both = scores[[OVERLAPS[0], OVERLAPS[2]]].to_numpy(float)[known]
        either = scores[[OVERLAPS[1], OVERLAPS[3]]].to_numpy(float)[known]

        def pooled(weights):
            return (weights @ both / (weights @ either)).mean(axis=-1)

        low, high = metrics.patient_bootstrap(pooled, np.asarray(patients)[known])
        summary |= {"value": float(pooled(np.ones((1, len(both))))[0]), "low": low, "high": high}
    return summary


def shape_scores(names, maps) -> dict:
    """Complexity and sparseness of maps (N, h, w), those that are asked for: name -> float (N,)."""
    measures = {"complexity": metrics.complexity, "sparseness": metrics.sparseness}
    return {name: measure(maps) for name, measure in measures.items() if name in names}
