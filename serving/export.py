"""Writes a trained model as the next version of a SavedModel that TensorFlow Serving can load.

    python -m serving.export RUN --to saved_models/NAME [--explain grad_cam,lrp:composite=epsilon_plus,rap]

Unless told otherwise it exports the explanations that suit the model (`kxray.explain.default_methods`):
evidence where it attends to diseases or aligns its films, else multiscale_cam where its stages vote through
a LayerRelevance layer; and grad_cam. A generator is exported with `generate`: a class and a seed in, films
out. A counterfactual GAN is exported with its classifier, whose signatures it gets, and
`explain_counterfactual`: a film and a target in, the changed film out.
"""

import contextlib
import functools
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from kxray.io.files import check_exportable
from kxray.spec import DECIDING_TASKS
from serving import methods
from serving.shell import import_tensorflow_quietly, one_line

GENERATOR, COUNTERFACTUAL = "generator", "counterfactual"
# A name that is not a number is no version to TensorFlow Serving's watcher.
_UNFINISHED = ".export-"
_ABANDONED_SECONDS = 3600


def export(run, to, explain=None) -> Path:
    """Exports a trained run.

    Args:
        run: a run folder (model.keras and spec.json), or a .keras file with spec.json beside it.
        to: the model's folder, for example saved_models/view_classifier; the next version number is written
            into it, atomically: a server that watches the folder sees all of the version or nothing.
        explain: explanation methods to export, with their options, as `serving.methods.parse` reads them:
            `["grad_cam", "lrp:composite=epsilon_plus"]`, or a dict from method to options. The first one also
            answers as `explain`; by default those that suit the model, `kxray.explain.default_methods`.

    Returns:
        The version's folder.

    Raises:
        FileNotFoundError, ValueError: the run cannot be read or its model cannot be served.
    """
    import kxray

    model, spec = kxray.load(run)
    classifier = None
    if spec.task == COUNTERFACTUAL:
        model, spec, *classifier = kxray.models.load_counterfactual(run)
    return export_model(model, spec, to, explain, classifier)


def export_model(model, spec, to, explain=None, classifier=None) -> Path:
    """Exports a model in memory; see `export`.

    Args:
        model: functional keras.Model from (N, height, width, 1) to the units of `spec.task`; of the task
            "generator" what `kxray.models.build("attention_cgan" | "cdcgan", ...)` makes; of the task
            "counterfactual" what `kxray.models.build("counterfactual_gan", ...)` makes.
        spec: kxray.ModelSpec.
        to: the model's folder.
        explain: explanation methods; see `export`. A generator has none.
        classifier: of the task "counterfactual" the classifier that it explains, (keras.Model, its spec).

    Returns:
        The version's folder. Its `assets.extra` holds spec.json (the classifier's, where there is one) and
        the warm-up requests.

    Raises:
        ValueError: the model does not fit the spec or a method, or the written SavedModel does not repeat
            its probabilities, films and maps to 1e-5 (see serving.verifying.TOLERANCE); nothing is left
            behind then. Maps of a deep network that jump under rounding (gradients, lrp) are compared by how
            far they jump.
    """
    check_exportable(to)
    signatures, told, checks = _planned(model, spec, explain, classifier)
    # Traced before anything is written: a method may refuse a model only then.
    archive = _archive(signatures)
    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(to)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=to))
    try:
        _write(archive, signatures, told, unfinished, to.name)
        _verify(checks, unfinished)
        unfinished.chmod(0o755)
        return _publish(unfinished, to)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def versions(folder) -> list[int]:
    """The version numbers in a model's folder, ascending."""
    folder = Path(folder)
    names = (child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _remove_abandoned(to):
    """Removes what killed exports left: unfinished folders that have not changed for an hour."""
    for folder in to.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _planned(model, spec, explain, classifier):
    """Signatures, the spec that the SavedModel tells, and what checks the signatures once they are written.

    ValueError unless models, specs and methods fit each other.
    """
    from kxray.explain import default_methods
    from serving import counterfactual, generator, graph, verifying

    if spec.task == GENERATOR:
        _check_generator(model, spec, explain)
        checks = [functools.partial(verifying.verify_generator, model, spec)]
        return generator.endpoints(model, spec), spec, checks
    gan = ()
    if spec.task == COUNTERFACTUAL:
        _check_counterfactual(model, spec, classifier)
        gan, (model, spec) = (model, spec), classifier
    _check_classifier(model, spec)
    explain = methods.parse(default_methods(model) if explain is None else explain)
    checks = [functools.partial(verifying.verify_classifier, model, spec, explain)]
    if not gan:
        return graph.endpoints(model, spec, explain), spec, checks
    checks.append(functools.partial(verifying.verify_counterfactual, *gan, model, spec))
    return counterfactual.endpoints(*gan, model, spec, explain), spec, checks


def _check_classifier(model, spec):
    from kxray.explain.graph import require_functional

    if spec.task not in DECIDING_TASKS:
        raise ValueError(
            f"{spec.name!r} classifies nothing (task {spec.task}), and nothing of it is served; export a "
            "classifier, a generator or a counterfactual GAN"
        )
    require_functional(model)
    expected_input = (None, *spec.image_size, 1)
    expected_units = 1 if spec.task == "binary" else spec.num_labels
    got_input, got_units = tuple(model.inputs[0].shape), model.outputs[0].shape[-1]
    if got_input != expected_input:
        raise ValueError(f"the spec says input {expected_input}, model {model.name!r} takes {got_input}")
    if got_units != expected_units:
        raise ValueError(
            f"a {spec.task} model of {spec.num_labels} labels has {expected_units} output units, "
            f"model {model.name!r} has {got_units}"
        )


def _check_generator(gan, spec, explain):
    if explain:
        raise ValueError(
            f"{spec.name!r} makes films, there is nothing to explain; export it without --explain"
        )
    sides, classes = getattr(gan, "sides", ()), getattr(gan, "num_classes", None)
    if not sides or (max(sides), max(sides)) != spec.image_size or classes != spec.num_labels:
        raise ValueError(
            f"the spec says films of {spec.image_size} of {spec.num_labels} classes, model {gan.name!r} "
            f"makes films of {max(sides, default='no')} pixels of {classes} classes"
        )


def _check_counterfactual(gan, spec, classifier):
    if classifier is None:
        raise ValueError(f"{spec.name!r} is served with the classifier that it explains; give both")
    classifier_spec = classifier[1]
    side, targets = getattr(gan, "side", None), getattr(gan, "num_targets", None)
    if (side, side) != spec.image_size or targets != spec.num_labels:
        raise ValueError(
            f"the spec says films of {spec.image_size} and {spec.num_labels} targets, model {gan.name!r} "
            f"changes films of {side} pixels to {targets} targets"
        )
    if classifier_spec.image_size != spec.image_size:
        raise ValueError(
            f"{spec.name!r} changes films of {spec.image_size}, classifier {classifier_spec.name!r} takes "
            f"{classifier_spec.image_size}"
        )


def _archive(signatures):
    import keras

    archive = keras.export.ExportArchive()
    # Not archive.track(model): variables that endpoints use are found anyway; tracking stores them twice.
    for signature_name, (function, input_signature) in signatures.items():
        archive.add_endpoint(signature_name, function, input_signature).get_concrete_function()
    return archive


def _write(archive, signatures, spec, folder, name):
    from serving import warmup

    archive.write_out(str(folder), verbose=False)
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    warmup.write(extra / warmup.FILE_NAME, name, signatures)


def _verify(checks, folder):
    """Reloads the SavedModel, replays its warm-up and compares its numbers with the Keras model's."""
    from serving import verifying

    signatures = verifying.reload(folder)
    for check in checks:
        check(signatures)


def _publish(unfinished: Path, to: Path) -> Path:
    # Renaming onto a folder that holds files fails: of two exports with one number the later moves on.
    version = max(versions(to), default=0) + 1
    while True:
        try:
            return Path(os.rename(unfinished, to / str(version)) or to / str(version))
        except OSError:
            if not (to / str(version)).exists():
                raise
            version += 1


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--to", required=True, type=click.Path(path_type=Path), help="Model folder, e.g. saved_models/NAME."
)
@click.option(
    "--explain",
    multiple=True,
    metavar="METHOD[:OPTION=VALUE]...[,METHOD...]",
    show_default="evidence or multiscale_cam where they suit the model, and grad_cam",
    help="Explanation methods; each answers as `explain_METHOD`, the first one also as `explain`.",
)
def main(run, to, explain):
    """Writes RUN (a run folder, or a .keras file with spec.json beside it) as the next version under --to.

    \b
    export runs/bones --to saved_models/bones --explain multiscale_cam,grad_cam,rap
    export runs/bones --to saved_models/bones --explain rap,lrp:composite=epsilon_plus:canonize=thresh
    export runs/bones --to saved_models/bones --explain integrated_gradients:steps=20:baseline=mean
    export runs/gan --to saved_models/gan
    export runs/counterfactuals --to saved_models/chest_counterfactuals --explain grad_cam

    The methods and their options are those of kxray.explain; a wrong name answers with the list.
    """
    import_tensorflow_quietly()
    try:
        click.echo(export(run, to, explain or None))
    except (ValueError, OSError) as error:
        click.echo(f"error: {one_line(error)}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
