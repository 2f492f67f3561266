"""What is left of a finished counterfactual GAN: its numbers on test films, examples, and its contract."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from training.counterfactuals import cf_scores

NAME = "counterfactual_gan"
# Examples of a target, and in all.
_EXAMPLES, _MOST_EXAMPLES = 2, 12


def judge(loaded, films, held, recipe, progress) -> tuple:
    """(table of pairs of a test film and a target, what metrics.json says of it).

    Args:
        loaded: LoadedCounterfactual.
        films: `training.counterfactuals.cf_films.CounterfactualFilms`.
        held: int8 (T, N), see `kxray.explain.targets.held`.
        recipe: its test_pairs and seed.
        progress: rich progress with a `facts` field.
    """
    part = "test" if len(films.rows("test")) else "val"
    pairs = cf_scores.pairs_of(held, films.rows(part), recipe.test_pairs, recipe.seed)
    if not len(pairs):
        raise ValueError(
            f"of no {part} film it is known whether it has a target; give films of more patients"
        )
    bar = progress.add_task("judging", total=len(pairs), facts="")
    table = cf_scores.measure_pairs(
        loaded.gan,
        (loaded.classifier, loaded.classifier_spec),
        loaded.targets,
        films,
        pairs,
        progress=lambda done: progress.update(bar, completed=done),
    )
    groups = films.grouping.groups[pairs.films]
    found = cf_scores.summaries(table, groups, [target.name for target in loaded.targets], recipe.seed)
    asked = (table["asked"] == 1).to_numpy()
    found["conditions"] = (
        f"{int(asked.sum())} changes of {table['film'][asked].nunique()} {part} films, "
        f"{len(set(groups[asked]))} patients, seed {recipe.seed}"
    )
    facts = films.table[["path", "patient_id"]].iloc[pairs.films].reset_index(drop=True)
    return pd.concat([facts, table], axis=1), found


def examples(loaded, films, judged) -> list:
    """A few changes as `DrawnCounterfactual`: the first of each target in the order in which they were drawn.

    Args:
        loaded: LoadedCounterfactual.
        films: CounterfactualFilms.
        judged: table of `judge`.
    """
    from training.report.counterfactual_pictures import examples_of

    asked = judged[judged["asked"] == 1]
    number = max(1, min(_EXAMPLES, _MOST_EXAMPLES // len(loaded.targets)))
    chosen = asked.groupby("target", sort=False).head(number).head(_MOST_EXAMPLES)
    if not len(chosen):
        return []
    made = loaded.counterfactuals(films.pixels(chosen["film"].to_numpy()), chosen["target"].tolist())
    truths = [
        truth(films, film, name, loaded) for film, name in zip(chosen["film"], chosen["target"], strict=True)
    ]
    captions = [Path(path).name for path in chosen["path"]]
    return examples_of(made, loaded.classifier_spec, loaded.probabilities, captions, truths)


def truth(films, film, name, loaded):
    """Where the finding is that a target takes away, bool (s, s); None where nobody knows.

    Args:
        films: CounterfactualFilms.
        film: position of one of them.
        name: of the target.
        loaded: LoadedCounterfactual.
    """
    import kxray
    from kxray.data.truth import truth_mask
    from kxray.io.resize import resize

    spec, row = loaded.classifier_spec, films.table.iloc[film].to_dict()
    target = next(target for target in loaded.targets if target.name == name)
    if not row.get("masks") and not row.get("boxes"):
        return None
    if spec.task != "multilabel":
        label = spec.labels[films.labels[film]]
    elif target.present:
        return None
    else:
        label = spec.labels[target.label]
    mask = truth_mask(row, kxray.read_image(row["path"]).pixels.shape, label, spec.labels)
    return None if mask is None else resize(mask.astype(np.float32), spec.image_size) >= 0.5


def spec_of(loaded, config, scores):
    """The ModelSpec of a finished run.

    Args:
        loaded: LoadedCounterfactual; its spec is not asked.
        config: what config.json holds.
        scores: what metrics.json holds.
    """
    from kxray.spec import ModelSpec

    whole, source, labels = scores["test"]["all"], config["classifier"], loaded.classifier_spec.labels
    return ModelSpec(
        NAME,
        tuple(target.name for target in loaded.targets),
        "counterfactual",
        loaded.classifier_spec.image_size,
        provenance={
            "recipe": NAME,
            "trained": time.strftime("%Y-%m-%d"),
            "targets": [[labels[target.label], target.present] for target in loaded.targets],
            "classifier": {name: source[name] for name in ("model", "task", "labels", "digest")},
            "data_fingerprint": config["data_fingerprint"],
            "split_hash": config["split_hash"],
            "films": config["films"],
            "kxray": config["versions"]["kxray"],
            "keras": config["versions"]["keras"],
            "epoch": scores["epoch"],
            "flip_rate": whole["flip_rate"],
            "change": whole["change"],
            "change_unneeded": whole["change_unneeded"],
            "score_conditions": scores["test"]["conditions"],
            "synthetic": "counterfactual films are made up; they are not for diagnosis",
        },
    )
