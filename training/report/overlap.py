"""Which classes are confused because the model looks at the same place, and what to collect against it.

The observation of the multi-scale CAM DenseNet paper (section 4.3) as a tool: on films that a model gets
wrong, the maps of the two competing classes overlap; films to be collected for the two should not hold what
makes them overlap.
"""

import dataclasses

import numpy as np
import pandas as pd

from kxray import metrics
from training import scoring

# Two labels closer than this in probability compete, whatever the thresholds say.
MARGIN = 0.2
# Fewer films than this show no pattern.
FEWEST = 3
# What is called more overlap: beyond chance, and large enough to be seen.
LARGEST_P, SMALLEST_GAIN = 0.05, 0.1
# A box over more of the film than this singles no place out.
LARGEST_BOX = 1 / 3
AVOIDED, IMITATED = 3, 2
WRONG, UNSURE, SURE = "wrong", "unsure", "sure"


def cases(predictions, spec, margin=MARGIN) -> pd.DataFrame:
    """Which two classes compete on each film.

    Args:
        predictions: prediction table of a model whose labels exclude each other.
        spec: its thresholds say which films are unsure.
        margin: a right film whose two largest probabilities differ by less is unsure too.

    Returns:
        Table with the index of `predictions`: `kind` ("wrong"; "unsure": right, but below its threshold or
        within the margin; "sure"), `first` and `second`, indices of labels: the true and the predicted one of
        a wrong film, the two most probable ones of any other.
    """
    labels, _, probabilities = scoring.columns_of(predictions, spec)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    top, runner_up = order[:, 0], order[:, 1]
    rows = np.arange(len(labels))
    thresholds = np.array([spec.threshold(label) for label in spec.labels])
    close = probabilities[rows, top] - probabilities[rows, runner_up] < margin
    unsure = close | (probabilities[rows, top] < thresholds[top])
    wrong = top != labels
    return pd.DataFrame(
        {
            "kind": np.where(wrong, WRONG, np.where(unsure, UNSURE, SURE)),
            "first": np.where(wrong, labels, top),
            "second": np.where(wrong, top, runner_up),
        },
        index=predictions.index,
    )


def compared_pairs(found) -> list[tuple[int, int, int]]:
    """Which maps to compare on which film: (row, first, second).

    A wrong or unsure film is compared on its own two classes; a sure one, for contrast, on every pair with
    its class that is confused on some other film.
    """
    confused = found[found["kind"] != SURE]
    pairs = {tuple(sorted(pair)) for pair in confused[["first", "second"]].values.tolist()}
    wanted = [(row, first, second) for row, first, second in confused[["first", "second"]].itertuples()]
    for row, label in found.loc[found["kind"] == SURE, "first"].items():
        for low, high in sorted(pairs):
            if label in (low, high):
                wanted.append((row, label, low + high - label))
    return wanted


def overlaps(maps, firsts, seconds) -> pd.DataFrame:
    """How far the maps of two classes fall together, film by film.

    Args:
        maps: float (N, h, w, L), one map a class, signed and raw.
        firsts, seconds: int (N,), the two classes of each film.

    Returns:
        Table of N rows: `overlap` (soft Jaccard, NaN where neither map has a positive value); `area_first`,
        `area_second` and `area_shared`, shares of the film where the one, the other or both maps reach half
        of their maximum; `x0 y0 x1 y1`, box of the largest region where both maps are strong, in shares of
        the film's width and height, NaN where there is none.
    """
    rows = np.arange(len(maps))
    first, second = maps[rows, :, :, firsts], maps[rows, :, :, seconds]
    shared = np.minimum(_to_one(first), _to_one(second))
    both = _above_half(first) & _above_half(second)
    height, width = maps.shape[1:3]
    boxes = metrics.region_box(shared).astype(float)
    boxes = np.where(boxes < 0, np.nan, boxes / [width, height, width, height])
    return pd.DataFrame(
        {
            "overlap": metrics.soft_jaccard(first, second),
            "area_first": metrics.area_above_half(first),
            "area_second": metrics.area_above_half(second),
            "area_shared": both.mean(axis=(1, 2)),
            **dict(zip(("x0", "y0", "x1", "y1"), boxes.T, strict=True)),
        }
    )


def _to_one(maps):
    positive = np.maximum(maps, 0)
    peaks = positive.max(axis=(1, 2), keepdims=True)
    return positive / np.where(peaks > 0, peaks, 1)


def _above_half(maps):
    peaks = maps.max(axis=(1, 2), keepdims=True)
    return (peaks > 0) & (maps >= 0.5 * peaks)


@dataclasses.dataclass(frozen=True)
class PairFinding:
    """What is known of two classes that are confused.

    Attributes:
        labels: the two names.
        first_as_second, second_as_first, unsure: films, by what happened to them.
        compared: right and sure films of the two classes that stand against them.
        overlap, overlap_sure: median soft Jaccard of the confused and of the sure films.
        p_value: of a one-sided Mann-Whitney test that confused films overlap more, times the number of pairs
            that were tested (Bonferroni); NaN below FEWEST films.
        place: whether place confuses the two: p below LARGEST_P, and medians SMALLEST_GAIN apart.
        sentences: what follows from it, in plain words, each with the films behind it.
        avoid: indices of prediction rows, the AVOIDED confused films with the most overlap.
        imitate: the IMITATED sure films of each class with the least.
    """

    labels: tuple[str, str]
    first_as_second: int
    second_as_first: int
    unsure: int
    compared: int
    overlap: float
    overlap_sure: float
    p_value: float
    place: bool
    sentences: tuple[str, ...]
    avoid: tuple
    imitate: tuple

    @property
    def films(self) -> int:
        return self.first_as_second + self.second_as_first + self.unsure


def findings(table, labels) -> list[PairFinding]:
    """Sums up a table of overlaps by pair of classes, the most confused pair first.

    Args:
        table: rows of `overlaps` with `row` (of the prediction table), `kind`, `first` and `second`.
        labels: all class names.
    """
    if not len(table):
        return []
    keys = np.sort(table[["first", "second"]].to_numpy(), axis=1)
    pairs = {}
    for low, high in np.unique(keys, axis=0).tolist():
        films = table[(keys == (low, high)).all(axis=1)]
        if (films["kind"] != SURE).any():
            pairs[low, high] = films
    p_values = {pair: _p_value(films) for pair, films in pairs.items()}
    tests = int(np.isfinite([*p_values.values()]).sum())
    found = [_finding(films, pair, labels, p_values[pair], tests) for pair, films in pairs.items()]
    return sorted(found, key=lambda pair: (-(pair.films - pair.unsure), -pair.films, pair.labels))


def _measured(films):
    """The defined overlaps of the confused and of the sure films."""
    confused = films["kind"] != SURE
    return films.loc[confused, "overlap"].dropna(), films.loc[~confused, "overlap"].dropna()


def _p_value(films):
    confused, sure = _measured(films)
    if min(len(confused), len(sure)) < FEWEST:
        return np.nan
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(confused, sure, alternative="greater").pvalue)


def _finding(films, pair, labels, p_value, tests):
    confused, sure = films[films["kind"] != SURE], films[films["kind"] == SURE]
    wrong = confused[confused["kind"] == WRONG]
    overlap, overlap_sure = (float(values.median()) for values in _measured(films))
    forth = int((wrong["first"] == pair[0]).sum())
    corrected = min(1.0, p_value * tests) if np.isfinite(p_value) else np.nan
    by_overlap = confused[confused["overlap"] > 0].sort_values("overlap", ascending=False, kind="stable")
    apart = sure[sure["overlap"].notna()].sort_values("overlap", kind="stable")
    finding = PairFinding(
        labels=(labels[pair[0]], labels[pair[1]]),
        first_as_second=forth,
        second_as_first=len(wrong) - forth,
        unsure=len(confused) - len(wrong),
        compared=len(sure),
        overlap=overlap,
        overlap_sure=overlap_sure,
        p_value=corrected,
        place=bool(corrected < LARGEST_P and overlap - overlap_sure >= SMALLEST_GAIN),
        sentences=(),
        avoid=tuple(by_overlap["row"][:AVOIDED]),
        imitate=tuple(row for label in pair for row in apart.loc[apart["first"] == label, "row"][:IMITATED]),
    )
    return dataclasses.replace(finding, sentences=tuple(_sentences(finding, films, tests)))


def _sentences(finding, films, tests):
    first, second = finding.labels
    overlap, overlap_sure = _measured(films)
    happened = (
        (finding.first_as_second, f"{first} taken for {second}"),
        (finding.second_as_first, f"{second} taken for {first}"),
        (finding.unsure, "right but unsure"),
    )
    yield f"{_films(finding.films)}: {', '.join(f'{count} {what}' for count, what in happened if count)}."
    if not len(overlap):
        yield "Neither class has evidence of its own on these films, so there is no overlap to measure."
        return
    if len(overlap) < FEWEST:
        yield f"Too few to show a pattern ({_films(len(overlap))} to measure on): look at them one by one."
        return
    told = f"The maps of the two classes overlap by {finding.overlap:.2f} (median of {_films(len(overlap))})"
    sure = _films(len(overlap_sure))
    if len(overlap_sure) < FEWEST:
        yield f"{told}; with {sure} of the two classes right and sure, there is nothing to compare it with."
    else:
        yield (
            f"{told}, by {finding.overlap_sure:.2f} on the {sure} of the two classes that are right and sure "
            f"(one-sided Mann-Whitney p = {finding.p_value:.2g}, corrected for {tests} "
            f"pair{'' if tests == 1 else 's'})."
        )
        if finding.place:
            yield (
                f"So {first} and {second} are confused where both draw on the same places. When collecting "
                "more of the two, take films like those to imitate, whose maps lie apart, and keep what lies "
                "in the boxes of those to avoid out of the film."
            )
        else:
            yield (
                "That is no clear difference: the place is not what confuses these two. Check their labels, "
                "or collect more of both, before choosing films by region."
            )
    if finding.overlap < SMALLEST_GAIN:
        return
    confused = films[(films["kind"] != SURE) & films["x0"].notna()]
    yield _region_sentence(confused[["x0", "y0", "x1", "y1"]].to_numpy())


def _region_sentence(box):
    """Whether the shared regions (N, 4) lie in one place of the film."""
    if len(box) < FEWEST:
        return f"The two maps share a region on {_films(len(box))} only: no common place."
    covered = np.median((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
    if covered > LARGEST_BOX:
        return (
            f"The boxes of the shared regions cover {covered:.0%} of the film (median of "
            f"{_films(len(box))}): too much to single a place out."
        )
    centres = (box[:, :2] + box[:, 2:]) / 2
    # The quarter of the film around the middle of the centres: is it where most of them are?
    near = (np.abs(centres - np.median(centres, axis=0)) <= 0.25).all(axis=1)
    if near.sum() < max(FEWEST, np.ceil(2 / 3 * len(box))):
        return (
            f"The shared regions of the {_films(len(box))} lie in different places: no common region, see "
            "the box of each film."
        )
    x0, y0, x1, y1 = np.median(box[near], axis=0)
    return (
        f"On {near.sum()} of {_films(len(box))} the shared region lies in one part of the film: from "
        f"{x0:.0%} to {x1:.0%} of its width and {y0:.0%} to {y1:.0%} of its height, from the top left."
    )


def _films(count):
    return f"{count} film{'' if count == 1 else 's'}"
