"""What a comparison of augmentation says in words: synthetic films help, no gain shown, or harm."""

import math

import numpy as np

from training.comparing.matrix_advice import probability, several

HELP, NO_GAIN, HARM = "synthetic films help", "no gain shown", "harm"
REAL, NO_ANATOMY = "real", "no-anatomy"
SHOWN = {
    "rare_auroc": "AUROC, rare classes",
    "auroc": "AUROC, all classes",
    "balanced_accuracy": "balanced accuracy",
    "even_accuracy": "balanced accuracy, class shares divided out",
}
# Below so many patients with a rare class, an interval over patients is too narrow to say anything.
FEWEST_GROUPS = 10
SIGNIFICANT = 0.05
# A classifier that has this of the synthetic films' classes hardly sees what they are of.
_HARDLY = 0.6


def choose(rows, validated) -> dict:
    """The rows that the verdict is about, by their scores on validation films.

    Args:
        rows: `training.comparisons.augmentation.Row`s.
        validated: name -> {"rare_auroc", "auroc"}.

    Returns:
        {"classical": the best without synthetic films, a classical remedy or the real films alone,
        "synthetic": the best ratio, None without}.
    """

    def best(names):
        keys = {
            name: tuple(-math.inf if math.isnan(value) else value for value in _ranked(validated[name]))
            for name in names
        }
        return max(names, key=keys.get, default=None)

    return {
        "classical": best([*(row.name for row in rows if row.classical), REAL]),
        "synthetic": best([row.name for row in rows if row.ratio is not None and row.real]),
    }


def _ranked(scores):
    return float(scores["rare_auroc"]), float(scores["auroc"])


def verdict(scores) -> tuple[str, list[str]]:
    """(HELP, NO_GAIN or HARM; the verdict, how sure it is and what it holds for, line by line).

    By the mean AUROC over the rare classes, the chosen ratio against the chosen row without synthetic films
    and against the real films alone: help where both intervals are above 0, harm where one is below.
    """
    synthetic, classical = scores["chosen"]["synthetic"], scores["chosen"]["classical"]
    if synthetic is None:
        return NO_GAIN, ["no row has synthetic films beside real ones: there is nothing to say of them"]
    against = _pair(scores, synthetic, classical)
    plain = _pair(scores, synthetic, REAL)
    size, alone = against["rare_auroc"], plain["rare_auroc"]
    meant = size
    few = scores["rare_groups"] < FEWEST_GROUPS
    if few or not math.isfinite(size["low"]):
        outcome = NO_GAIN
        head = (
            f"no gain shown: test patients with a rare class are {scores['rare_groups']}, too few to show a "
            f"gain or a loss; {synthetic} against {classical}, {_told(size)}"
        )
    elif size["high"] < 0:
        outcome = HARM
        head = f"harm: {synthetic} is worse than {classical}, by {_told(size)}"
    elif alone["high"] < 0:
        outcome, meant = HARM, alone
        head = f"harm: {synthetic} is worse than the real films alone, by {_told(alone)}"
    elif size["low"] > 0 and alone["low"] > 0:
        outcome = HELP
        head = f"synthetic films help: {synthetic} is better than {classical}, by {_told(size)}"
    elif size["low"] > 0:
        outcome, meant = NO_GAIN, alone
        head = (
            f"no gain shown: {synthetic} is better than {classical}, by {_told(size)}, but not clearly than "
            f"the real films alone, by {_told(alone)},"
        )
    else:
        outcome = NO_GAIN
        head = f"no gain shown: {synthetic} against {classical}, {_told(size)}"
    lines = [f"{head} in mean AUROC over the rare classes ({', '.join(scores['rare'])})"]
    lines.append(_sure(outcome, meant, few, scores))
    if classical != REAL:
        lines.append(f"against the real films alone, {synthetic} changes it by {_told(alone)}")
    lines.append(_all_classes(synthetic, classical, against["auroc"]))
    lines += _what_films_show(scores)
    lines += _shortcut(scores)
    lines.append(f"it holds for {scores['holds_for']}, and for no others")
    return outcome, lines


def _pair(scores, one, other):
    return next(found for found in scores["differences"] if (found["one"], found["other"]) == (one, other))


def _sure(outcome, size, few, scores):
    """How sure the first line is."""
    seeds = scores["seeds"]
    signs = [value > 0 for value in size["by_seed"]]
    agree = max(sum(signs), len(signs) - sum(signs))
    how = (
        f"{probability(size['p'], 3)}, {probability(size['p_holm'], 3)} after correction for all pairs; "
        + (
            f"{agree} of {seeds} seeds agree on the sign"
            if seeds > 1
            else "one seed, whose luck is not measured"
        )
    )
    if few:
        return f"how sure: not at all; {how}"
    if outcome == NO_GAIN:
        if not math.isfinite(size["high"]):
            return f"how sure: not at all; {how}"
        gain, loss = abs(max(size["high"], 0)), abs(min(size["low"], 0))
        return (
            f"how sure: gains above {gain:.3f} and losses above {loss:.3f} are unlikely, smaller ones remain "
            f"possible; {how}"
        )
    firm = size["p_holm"] < SIGNIFICANT and agree == seeds and seeds > 1
    return f"how sure: {'clear' if firm else 'weak, repeat it with more seeds or more test patients'}; {how}"


def _all_classes(synthetic, classical, size):
    if not math.isfinite(size["low"]):
        word = "cannot be measured"
    else:
        word = "a gain" if size["low"] > 0 else "a loss" if size["high"] < 0 else "no clear change"
    return f"over all classes, {synthetic} against {classical}: {word}, {_told(size)}"


def _what_films_show(scores):
    """Whether the classifier of the real films recognises the classes of synthetic ones."""
    areas = [area for area in scores["recognised"].values() if area is not None and math.isfinite(area)]
    if not areas:
        return []
    mean = float(np.mean(areas))
    hint = ": they hardly show their class, so they can hardly teach it" if mean < _HARDLY else ""
    return [
        "the classifier of the real films tells the synthetic films' classes apart with mean AUROC "
        f"{mean:.3f}{hint}"
    ]


def _shortcut(scores):
    size = _pair(scores, REAL, NO_ANATOMY)["auroc"]
    if size["low"] > 0 or not math.isfinite(size["low"]):
        return []
    blind = scores["baselines"][NO_ANATOMY]["auroc"]
    return [
        f"caution: a classifier that sees no anatomy reaches AUROC {interval(blind)}, and the classifier of "
        "the real films is not clearly above it"
    ]


def _told(size):
    return interval(size, signed=True)


def interval(score, signed=False) -> str:
    """ "0.712 [0.650, 0.771]"; signed for differences."""
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if signed else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(*(math.nan if score[key] is None else score[key] for key in ("value", "low", "high")))


def told(metrics) -> list[str]:
    """The comparison in lines for the shell."""
    rows = {**metrics["rows"], **metrics["baselines"]}
    width = max(map(len, rows)) + 2
    titles = [*(title for name, title in SHOWN.items() if name != "even_accuracy"), "the same, shares out"]
    lines = [f"{'':<{width}}" + "".join(f"{title:<23}" for title in titles)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{interval(row[score]):<23}" for score in SHOWN).rstrip())
    return [*lines, *metrics["verdict"], conditions(metrics)]


def conditions(metrics) -> str:
    """What the scores were measured on, in words."""
    seeds = metrics["seeds"]
    return (
        f"{metrics['films']} test films of {metrics['groups']} patients or groups, {several(seeds, 'seed')}; "
        f"95% intervals over resampled patients{' and seeds' * (seeds > 1)}"
    )
