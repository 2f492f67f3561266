"""What a comparison of generated with real films says: the paper's table beside ours, and a verdict."""

from pathlib import Path

FLOOR = "real films"
# Table 1 of Ann et al. (2020): films of 256 px, DenseNet-121 on ChestX-ray14; lower is nearer.
PAPER = {
    "cdcgan": (4.05e-05, 2.87e-05, 1.34e-04, 3.27e-04, 1.49e-04, 3.38e-04, 3.62e-05, 2.17e-04),
    "attention_cgan": (2.15e-05, 6.65e-06, 3.48e-04, 2.29e-04, 5.97e-05, 9.34e-05, 4.52e-04, 3.30e-05),
}


def paper_table(labels) -> dict | None:
    """The paper's Table 1, where the classes are its eight: dict from model to its FDD by class."""
    from kxray.data.conditions import DISEASES

    if set(labels) != set(DISEASES):
        return None
    return {name: dict(zip(DISEASES, values, strict=True)) for name, values in PAPER.items()}


def table_rows(found) -> list[dict]:
    """Rows of table.csv: one a model and class, and one of all classes."""
    rows = []
    for row in found["rows"]:
        scores = row["scores"]
        apart = scores["told_apart"]["classes"] if scores["told_apart"] else {}
        for name, score in [*scores["classes"].items(), ("all", scores["overall"])]:
            line = {"model": row["name"], "class": name, "films": score["counts"]["compared"]}
            for measure in ("fdd", "fdd_probabilities", "kid"):
                for key in ("value", "low", "high"):
                    line[measure if key == "value" else f"{measure}_{key}"] = score[measure][key]
            line["reliable"] = score["fdd"]["reliable"]
            for key in ("precision", "recall", "density", "coverage"):
                line[key] = (score["fidelity"] or {}).get(key)
            told_apart = apart.get(name)
            for key in ("value", "low", "high"):
                column = "told_apart_auroc" if key == "value" else f"told_apart_auroc_{key}"
                line[column] = told_apart["auroc"][key] if told_apart else None
            line["told_apart"] = told_apart["better"] if told_apart else None
            rows.append(line)
    return rows


def verdict(found) -> list[str]:
    """What a reader takes away, in sentences."""
    rows = [row for row in found["rows"] if row["name"] != FLOOR]
    floor = next((row for row in found["rows"] if row["name"] == FLOOR), None)
    said = []
    for row in rows:
        scores = row["scores"]
        sentence = f"{row['name']}: FDD {interval(scores['overall']['fdd'])}"
        if floor is not None:
            sentence += f"; real films of other patients have {interval(floor['scores']['overall']['fdd'])}"
        apart = scores["told_apart"]
        if apart:
            sentence += (
                f"; the classifier of real films tells {apart['better']} of {apart['of']} generated classes "
                "apart better than by chance"
            )
            if floor is not None and floor["scores"]["told_apart"]:
                sentence += f", of real films {floor['scores']['told_apart']['better']}"
        said.append(sentence)
        said += [f"{row['name']}: {scale_told(scale)}" for scale in row["scales"]]
    for row in rows[1:]:
        said.append(_compared(rows[0], row, found["labels"]))
    return said


def _compared(first, other, labels):
    """Which of two models is nearer to real films, class by class; where intervals overlap, neither."""
    nearer = {"first": [], "other": [], "neither": []}
    for label in labels:
        one, two = (row["scores"]["classes"][label]["fdd"] for row in (first, other))
        if None in (one["value"], two["value"]):
            continue
        apart = None not in (one["low"], one["high"], two["low"], two["high"]) and (
            one["high"] < two["low"] or two["high"] < one["low"]
        )
        side = ("first" if one["value"] < two["value"] else "other") if apart else "neither"
        nearer[side].append(label)
    parts = [
        f"{name} is nearer to real films in {len(nearer[side])} of {len(labels)} classes by FDD"
        + (f" ({', '.join(nearer[side])})" if nearer[side] else "")
        for side, name in (("first", first["name"]), ("other", other["name"]))
    ]
    if nearer["neither"]:
        parts.append(
            f"intervals overlap or are missing in {len(nearer['neither'])} ({', '.join(nearer['neither'])})"
        )
    updates = [row.get("discriminator_updates") for row in (first, other)]
    if None not in updates and updates[0] != updates[1]:
        parts.append(f"they had {updates[0]} and {updates[1]} discriminator updates: not the same training")
    return "; ".join(parts)


def scale_told(scale) -> str:
    """How far a larger film and the smallest one are the same film, in a sentence."""
    numbers = {name: scale[name] for name in ("correlation", "lowest", "own", "another")}
    shown = {name: "-" if value is None else f"{value:.3f}" for name, value in numbers.items()}
    return (
        f"films of {scale['side']} px, averaged down, and of {scale['against']} px correlate by "
        f"{shown['correlation']} (at least {shown['lowest']}); {shown['another']} with films of "
        f"another random vector, {shown['own']} where the mean film of the class is taken away"
    )


def interval(score) -> str:
    """A value with its interval, short."""
    if score is None or score["value"] is None:
        return "-"
    ends = f" [{score['low']:.3g}, {score['high']:.3g}]" if score["low"] is not None else ""
    return f"{score['value']:.3g}{ends}"


def conditions_told(found) -> str:
    """On what the tables stand, in one sentence."""
    model = found["features"]
    side = "x".join(map(str, model["image_size"]))
    return (
        f"{found['films']} real {found['part']} films of {found['patients']} patients and as many generated "
        f"ones of each class; features: {model['backbone'] or model['model']} at {side} px, trained on real "
        f"films; truncation {found['truncation']:g}, seed {found['seed']}"
        + ("; 95% intervals" if found["resamples"] else "")
    )


def told(found, out) -> str:
    """The lines that are printed: FDD as the paper's Table 1 has it, then all other overall scores."""
    labels = found["labels"]
    width = max(len(row["name"]) for row in found["rows"])
    lines = [conditions_told(found), "", "FDD by class"]
    for label in labels:
        values = [
            f"{row['name']} {interval(row['scores']['classes'][label]['fdd'])}" for row in found["rows"]
        ]
        lines.append(f"  {label} ({found['counts'][label]}): {'; '.join(values)}")
    lines += ["", "all classes"]
    for row in found["rows"]:
        score = row["scores"]["overall"]
        fidelity = score["fidelity"] or {}
        numbers = [f"FDD {interval(score['fdd'])}", f"KID {interval(score['kid'])}"]
        numbers += [
            f"{name} {fidelity[name]:.2f}" for name in ("precision", "recall", "coverage") if fidelity
        ]
        lines.append(f"  {row['name'].ljust(width)}  {', '.join(numbers)}")
    lines += ["", *found["verdict"], *(f"note: {note}" for note in found["notes"])]
    return "\n".join([*lines, f"look at {Path(out) / 'generated.html'}"])
