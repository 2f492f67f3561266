"""A matrix run in words: its table for the shell, which network to take and why, and what was not tested."""

import math
import shlex

import pandas as pd

from training.comparing.matrix_scores import (
    FINE_TUNED,
    FROZEN,
    SIGNIFICANT,
    comparison_of,
    network,
    or_lowest,
)

_TIMES_WORTH_TELLING = 1.5


def interval(score) -> str:
    return f"{_number(score['value'])} [{_number(score['low'])}, {_number(score['high'])}]"


def probability(p, digits=4) -> str:
    """ "p 0.0123", or "p < 0.0001" below what the digits can show."""
    smallest = 10.0**-digits
    return f"p {p:.{digits}f}" if p >= smallest else f"p < {smallest:.{digits}f}"


def several(count, word) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _number(value):
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _defined(value) -> float:
    """NaN for what JSON holds as null: no comparison with it is true."""
    return math.nan if value is None else value


def recommendation(metrics) -> list[str]:
    """Which network to take and why, the headline first.

    Chosen on validation films, told with its scores on test films. "Cannot be told apart" and "better" go by
    the permutation test over groups, corrected for all tests.
    """
    row = metrics["rows"][metrics["chosen"]]
    name = network(row)
    score = f"accuracy {interval(row['accuracy'])} on test films"
    take = f"Take {name}: {score}; {metrics['chosen_because']}"
    lines = []
    verdict = _anatomy(metrics, row)
    if not above_chance(metrics):
        lines.append(
            f"Take none: {name}, the choice of the validation films, is not better than chance: balanced "
            f"accuracy {interval(row['balanced_accuracy'])}, and guessing reaches "
            f"{1 / len(metrics['labels']):.3f}"
        )
        lines += verdict
    elif verdict:
        lines += [*verdict, f"Should the audit find no shortcut: {take[0].lower()}{take[1:]}"]
    else:
        lines.append(take)
    lines += _other_mode(metrics, row)
    lines += _rivals(metrics)
    lines += _baselines(metrics)
    return lines


def shortcut_likely(metrics) -> bool:
    """Whether the chosen network's score needs an audit of the films before anyone believes it."""
    return bool(_anatomy(metrics, metrics["rows"][metrics["chosen"]]))


def above_chance(metrics) -> bool:
    """Whether the chosen network is shown to be better than guessing."""
    low = _defined(metrics["rows"][metrics["chosen"]]["balanced_accuracy"]["low"])
    return low > 1 / len(metrics["labels"])


def _anatomy(metrics, row):
    """What to say where a classifier that sees no anatomy does as well as the chosen network, or nearly."""
    from kxray.data.shortcuts import EXPLAINED_SHARE, skill

    blind = metrics["baselines"].get("no-anatomy")
    if blind is None or not _defined(blind["balanced_accuracy"]["low"]) > 1 / len(metrics["labels"]):
        return []
    audit = f"audit the films first: python -m training.audit --data {shlex.quote(metrics['source'])}"
    if not _better(metrics, metrics["chosen"], "no-anatomy"):
        beaten = any(
            _defined(other["balanced_accuracy"]["low"]) > _defined(blind["balanced_accuracy"]["high"])
            for other in metrics["rows"].values()
        )
        who = "The chosen network does not beat" if beaten else "No network clearly beats"
        if not beaten and _better(metrics, "no-anatomy", metrics["chosen"]):
            who = "No network comes near"
        return [
            f"{who} the classifier that sees no anatomy (accuracy {interval(blind['accuracy'])}; "
            f"{network(row)} {interval(row['accuracy'])}): {audit}"
        ]
    labels = len(metrics["labels"])
    reached, own = (_defined(score["balanced_accuracy"]["value"]) for score in (blind, row))
    if skill(reached, labels) >= EXPLAINED_SHARE * skill(own, labels):
        return [
            f"A classifier that sees no anatomy reaches {_number(reached)} of the network's {_number(own)} "
            f"balanced accuracy: {audit}"
        ]
    return []


def _better(metrics, one, other):
    test = comparison_of(metrics, one, other)
    return bool(test and test["p_permutation_holm"] < SIGNIFICANT and test["difference"]["value"] > 0)


def _difference(test):
    """ "0.010 worse [-0.03, 0.01], p 0.300" of the other against the one."""
    size = -test["difference"]["value"]
    word = "better" if size > 0 else "worse" if size < 0 else "different"
    low, high = (-_defined(test["difference"][end]) for end in ("high", "low"))
    return f"{abs(size):.3f} {word} ({low:+.3f} to {high:+.3f}, {probability(test['p_permutation_holm'], 3)})"


def _told_apart(test):
    return "" if test["p_permutation_holm"] < SIGNIFICANT else ", which these films cannot tell from chance"


def _minutes(one, other):
    """How many times the minutes of `one` the row `other` takes, in words."""
    if one["minutes"] <= 0:
        return ""
    times = other["minutes"] / one["minutes"]
    if times >= _TIMES_WORTH_TELLING:
        return f", and takes {times:.0f} times the minutes" if times >= 2 else ", and takes longer"
    if times <= 1 / _TIMES_WORTH_TELLING:
        return (
            f", and takes {times:.1%} of the minutes"
            if times < 0.1
            else f", and takes {times:.0%} of the minutes"
        )
    return ""


def _other_mode(metrics, row):
    opposite = FINE_TUNED if row["mode"] == FROZEN else FROZEN
    for name, other in metrics["rows"].items():
        if (other["backbone"], other["mode"]) == (row["backbone"], opposite):
            test = comparison_of(metrics, metrics["chosen"], name)
            what = "Fine-tuned" if opposite == FINE_TUNED else "Frozen"
            return [f"{what}, it is {_difference(test)}{_told_apart(test)}{_minutes(row, other)}"]
    return []


def _rivals(metrics):
    """Other backbones that do as well, or better, on the test films."""
    row, lines = metrics["rows"][metrics["chosen"]], []
    for name, other in metrics["rows"].items():
        if other["backbone"] == row["backbone"]:
            continue
        test = comparison_of(metrics, metrics["chosen"], name)
        if not (test["p_permutation_holm"] < SIGNIFICANT and test["difference"]["value"] > 0):
            lines.append(f"{network(other)} is {_difference(test)}{_told_apart(test)}{_minutes(row, other)}")
    return lines


def _baselines(metrics):
    texture = metrics["baselines"].get("texture")
    if texture is None or _better(metrics, metrics["chosen"], "texture"):
        return []
    how = "better" if _better(metrics, "texture", metrics["chosen"]) else "as well"
    return [
        f"Texture alone does {how}: {texture['network']} reaches {interval(texture['accuracy'])}, without "
        "a network"
    ]


def more_films(metrics) -> list[str]:
    """Whether more films or another backbone would help, a sentence a network with a learning curve."""
    lines = []
    for name, row in metrics["rows"].items():
        curve = row["learning_curve"]
        if curve is None or curve["doubling"] is None:
            continue
        gain, last = curve["doubling"], curve["points"][-1]
        told = (
            f"{network(row)}: {interval(last['accuracy'])} with all training films, "
            f"{last['films_per_class']:.0f} of the smallest class; from {gain['from']:.0f} to "
            f"{gain['to']:.0f} of it, a doubling of films brought {interval(gain)}"
        )
        if _defined(gain["low"]) > 0:
            reach = min(1.0, last["accuracy"]["value"] + gain["value"])
            told += (
                f": more films should help; twice as many would give at most about {reach:.3f}, for gains "
                "shrink as a curve flattens"
            )
        elif _defined(gain["high"]) < 0:
            told += ": more films did not help here; look at the labels and at the epochs"
        else:
            told += ": these films do not show that more of them would help"
        lines.append(f"{told}; {_other_backbone(metrics, name)}")
    return lines


def _other_backbone(metrics, name):
    """The best other backbone of the same mode, by validation films, against this one."""
    row = metrics["rows"][name]
    others = {
        key: other
        for key, other in metrics["rows"].items()
        if other["mode"] == row["mode"] and other["backbone"] != row["backbone"]
    }
    if not others:
        return "no other backbone was tried"
    best = max(others, key=lambda key: or_lowest(others[key]["validation_balanced_accuracy"]))
    test = comparison_of(metrics, name, best)
    if test is not None:
        return f"another backbone, {network(others[best])}, is {_difference(test)}{_told_apart(test)}"
    change = others[best]["accuracy"]["value"] - row["accuracy"]["value"]
    return f"another backbone, {network(others[best])}, is {change:+.3f} away (not tested)"


def untested(config, metrics) -> list[str]:
    """What these numbers leave open."""
    options = config["options"]
    lines = [
        "films of other hospitals, machines or days than those of this set: every film tested comes from it",
        "other learning rates, weight decays, heads and augmentation: one setting for all, none tuned",
        f"other input sizes than {options['image_size']} px, and other backbones and modes than in the table",
    ]
    modes = {row["mode"] for row in metrics["rows"].values()}
    tuned = options.get("fine_tune_epochs") or options["epochs"]
    if FINE_TUNED in modes and tuned < options["epochs"]:
        lines.append(
            f"fine-tuning for longer than {tuned} epochs (heads of frozen networks had {options['epochs']})"
        )
    if not config["grouped_by"].startswith("patient"):
        lines.append(
            "whether films of one patient are on both sides: patients are unknown, near-duplicates were kept "
            "together instead"
        )
    if "none" in config["weights"].values():
        lines.append("what pretrained weights bring: some networks started from random ones")
    if metrics["seeds"] == 1:
        lines.append("how much a score depends on the seed: there was one")
    return lines


def table_of(metrics) -> pd.DataFrame:
    """The matrix as a table, one line a network or baseline."""
    lines = []
    for name, row in {**metrics["rows"], **metrics["baselines"]}.items():
        line = {"row": name, "backbone": row.get("backbone", row.get("network")), "mode": row.get("mode", "")}
        for column in ("accuracy", "balanced_accuracy", "auroc"):
            if column in row:
                score = row[column]
                line |= {
                    column: score["value"],
                    f"{column}_low": score["low"],
                    f"{column}_high": score["high"],
                }
        line |= {key: row["accuracy"][key] for key in ("mean_over_folds", "sd_over_folds")}
        for key, error in row.get("expected_calibration_error", {}).items():
            line[f"calibration_error_{key}"] = error
        for key in (
            *("validation_balanced_accuracy", "minutes", "feature_minutes", "median_seconds_a_training"),
            *("median_epochs", "parameters", "trained_parameters", "peak_memory_mb", "feature_mb"),
        ):
            line[key] = row.get(key)
        lines.append(line)
    return pd.DataFrame(lines)


def told(metrics) -> list[str]:
    """The matrix run in lines for the shell."""
    lines = [f"{'accuracy':<22}" + "".join(f"{title:<24}" for title in ("frozen", "fine-tuned"))]
    for backbone in dict.fromkeys(row["backbone"] for row in metrics["rows"].values()):
        cells = [f"{backbone:<22}"]
        for mode in (FROZEN, FINE_TUNED):
            row = metrics["rows"].get(f"{backbone}-{mode}")
            cells.append(f"{interval(row['accuracy']) if row else '':<24}")
        lines.append("".join(cells).rstrip())
    for row in metrics["baselines"].values():
        lines.append(f"{row['network']:<46}{interval(row['accuracy'])}")
    for row in metrics["rows"].values():
        error = row["expected_calibration_error"]
        lines.append(
            f"{network(row)}: balanced accuracy {interval(row['balanced_accuracy'])}, AUROC "
            f"{interval(row['auroc'])}, calibration error {error['uncalibrated']:.3f}, "
            f"{error['calibrated']:.3f} after temperature; {row['minutes']:.1f} min for "
            f"{several(row['trainings'], 'training')}, {row['trained_parameters']:,} of "
            f"{row['parameters']:,} parameters trained"
        )
    for test in metrics["tests"]:
        lines.append(
            f"{test['one']} minus {test['other']}: {interval(test['difference'])}; McNemar "
            f"{test['only_one_right']}:{test['only_other_right']}, {probability(test['p_mcnemar_holm'])}; "
            f"over groups {probability(test['p_permutation_holm'])} "
            f"(corrected for {several(len(metrics['tests']), 'test')})"
        )
    lines += more_films(metrics)
    lines.append(
        f"{metrics['films']} films in {metrics['groups']} groups, {several(metrics['folds'], 'fold')}, "
        f"{several(metrics['seeds'], 'seed')}; 95% intervals over resampled groups"
    )
    lines += [f"{line}." for line in recommendation(metrics)]
    if above_chance(metrics):
        lines.append(f"train and keep the chosen network: {metrics['next']}")
    return lines
