"""Writes a trained model as the next version of a SavedModel that TensorFlow Serving can load.

    python -m serving.export RUN --to saved_models/NAME [--explain grad_cam,lrp:composite=epsilon_plus,rap]

Unless told otherwise it exports the explanations that suit the model (`kxray.explain.default_methods`):
evidence where it attends to diseases or aligns its films, else multiscale_cam where its stages vote through
a LayerRelevance layer; and grad_cam. A generator is exported with `generate`: a class and a seed in, films
out.
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
from serving import methods
from serving.shell import import_tensorflow_quietly, one_line

# Largest difference between a served number and the Keras model's, by the coarsest type that its layers
# compute in: graph optimisation joins operations, which rounds half-precision numbers at other places. Of a
# probability; of a map, whose scale is the model's own, as a share of its norm.
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
# A gradient jumps where rounding takes a ReLU over 0, as it does somewhere in a deep network. So a map may
# also differ by this many times what it moves when the film moves by a tenth of the tolerance, up to a share
# of its norm beyond which it says nothing.
_TIMES_MOVED, _NOISE_SHARE = 10, 0.5
GENERATOR = "generator"
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
    return export_model(model, spec, to, explain)


def export_model(model, spec, to, explain=None) -> Path:
    """Exports a model in memory; see `export`.

    Args:
        model: functional keras.Model from (N, height, width, 1) to the units of `spec.task`; of the task
            "generator" what `kxray.models.build("attention_cgan" | "cdcgan", ...)` makes.
        spec: kxray.ModelSpec.
        to: the model's folder.
        explain: explanation methods; see `export`. A generator has none.

    Returns:
        The version's folder. Its `assets.extra` holds spec.json and the warm-up requests.

    Raises:
        ValueError: the model does not fit the spec or a method, or the written SavedModel does not repeat
            its probabilities and maps to 1e-5 (see TOLERANCE); nothing is left behind then. Maps of a deep
            network that jump under rounding (gradients, lrp) are compared by how far they jump.
    """
    check_exportable(to)
    if spec.task == GENERATOR:
        signatures = _generator_signatures(model, spec, explain)
    else:
        from kxray.explain import default_methods

        explain = methods.parse(default_methods(model) if explain is None else explain)
        signatures = _signatures(model, spec, explain)
    # Traced before anything is written: a method may refuse a model only then.
    archive = _archive(signatures)
    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(to)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=to))
    try:
        _write(archive, signatures, spec, unfinished, to.name)
        if spec.task == GENERATOR:
            _verify_generator(model, spec, unfinished)
        else:
            _verify(model, spec, explain, unfinished)
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


def _signatures(model, spec, explain):
    """The signatures to write; ValueError unless model, spec and methods fit each other."""
    from kxray.explain.graph import require_functional
    from serving import graph

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
    return graph.endpoints(model, spec, explain)


def _generator_signatures(gan, spec, explain):
    """The signatures of a generator; ValueError unless it fits its spec."""
    from serving import generator

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
    return generator.endpoints(gan, spec)


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


def _verify(model, spec, explain, folder):
    """Reloads the SavedModel, replays its warm-up and compares its numbers with the Keras model's."""
    import tensorflow as tf

    from kxray.layers.film_input import film_input
    from serving import warmup

    pixels = warmup.example_pixels(150, 130)[None, ..., None]
    png = tf.io.encode_png(tf.constant((pixels[0] * 65535).round().astype("uint16")))
    images = film_input(spec)(pixels)
    tolerance = _tolerance(model)
    expected = _expected_probabilities(model, spec, images, tolerance)
    signatures = tf.saved_model.load(str(folder)).signatures
    answers = {
        "predict_pixels": signatures["predict_pixels"](pixels=tf.constant(pixels)),
        "serving_default": signatures["serving_default"](image_bytes=png[None]),
    }
    # Not -1: where two labels are nearly tied, rounding may predict either.
    labels = [0, spec.num_labels - 1]
    for method, options in explain.items():
        name = f"explain_{method}"
        answers[name] = signatures[name](image_bytes=tf.stack([png, png]), label=tf.constant(labels))
        expected_maps = functools.partial(_expected_maps, model, spec, labels, method, options)
        _compare_maps(name, answers[name]["heatmap"].numpy(), expected_maps, images, tolerance)
    for name, outputs in answers.items():
        _compare(name, outputs["probabilities"], expected, tolerance)
    _replay_warmup(signatures, folder)


def _verify_generator(gan, spec, folder):
    """Reloads the SavedModel, replays its warm-up and compares its films with those of `gan.sample`."""
    import numpy as np
    import tensorflow as tf

    tolerance = _tolerance(gan.sampling_generator)
    signatures = tf.saved_model.load(str(folder)).signatures
    labels, seeds = [0, spec.num_labels - 1], [0, 7]
    samples = [gan.sample([label], seed=seed) for label, seed in zip(labels, seeds, strict=True)]
    if not all(np.isfinite(film).all() for films in samples for film in films.values()):
        raise ValueError(f"model {gan.name!r} makes films that are not finite; nothing was written")
    for name in ("serving_default", "generate"):
        answer = signatures[name](label=tf.constant(labels), seed=tf.constant(seeds, tf.int64))
        for side in gan.sides:
            expected = np.concatenate([films[side] for films in samples])
            output = "films" if side == max(gan.sides) else f"film_{side}"
            _compare(name, answer[output], expected, tolerance)
        decoded = [tf.io.decode_png(film, dtype=tf.uint16) for film in answer["film_bytes"]]
        pixels = np.stack([film.numpy() for film in decoded]) / 65535
        _compare(name, pixels, answer["films"], 1e-5)
    _replay_warmup(signatures, folder)


def _tolerance(model):
    computed_in = {layer.compute_dtype for layer in model.layers}
    return max(TOLERANCE.get(dtype, TOLERANCE["float32"]) for dtype in computed_in)


def _replay_warmup(signatures, folder):
    import tensorflow as tf

    from serving import warmup

    for request in warmup.read(folder / "assets.extra" / warmup.FILE_NAME):
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        signatures[request.model_spec.signature_name](**inputs)


def _expected_probabilities(model, spec, images, tolerance):
    """What the Keras model itself says, float32 (N, L); ValueError where its last activation is another."""
    import numpy as np
    import tensorflow as tf

    from kxray.explain.head import with_logits

    logits, last = with_logits(model, model.outputs[0])(images)
    activate = tf.nn.softmax if spec.task == "multiclass" else tf.sigmoid
    if _far(activate(logits), last, tolerance) and _far(logits, last, tolerance):
        raise ValueError(
            f"model {model.name!r} ends neither in logits nor in the {activate.__name__} of {spec.task}"
        )
    expected = activate(logits / spec.temperature).numpy()
    return np.concatenate([1 - expected, expected], axis=-1) if spec.task == "binary" else expected


def _expected_maps(model, spec, labels, method, options, images):
    """The maps of the Keras model for one film and each of `labels`, float32 (len(labels), h, w)."""
    import numpy as np
    import tensorflow as tf

    from kxray.explain import attribute, binary_explainer

    films = np.repeat(images, len(labels), axis=0)
    if spec.task != "binary":
        return attribute(model, films, labels, method, **options).sum(axis=-1)
    explain = binary_explainer(model, method, **options)
    return explain(tf.constant(films), tf.constant(labels))["heatmap"].numpy().sum(axis=-1)


def _compare(signature_name, got, expected, tolerance):
    import numpy as np

    if _far(got, expected, tolerance):
        difference = np.abs(got - expected).max()
        raise ValueError(
            f"the exported {signature_name} differs from the Keras model by {difference:.1e}, more than "
            f"{tolerance:.0e}; nothing was written"
        )


def _compare_maps(signature_name, got, expected_maps, images, tolerance):
    import numpy as np

    images = np.asarray(images)
    expected = expected_maps(images)
    if not np.isfinite(expected).all():
        raise ValueError(
            f"{signature_name} is not finite on this model; give it other options. Nothing was written"
        )
    difference = _apart(got, expected)
    if difference <= tolerance:
        return
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, images.shape) * tolerance
    moved = _apart(expected_maps((images + noise).astype("float32")), expected)
    if moved > _NOISE_SHARE:
        raise ValueError(
            f"{signature_name} is rounding noise on this model: a change of {tolerance / 10:.0e} in the film "
            f"changes the map by {moved:.1g} of its norm; give it other options. Nothing was written"
        )
    limit = min(_TIMES_MOVED * max(tolerance, moved), _NOISE_SHARE)
    if not difference <= limit:
        raise ValueError(
            f"the exported {signature_name} differs from the Keras model by {difference:.1e} of its norm, "
            f"more than {limit:.0e}; nothing was written"
        )


def _apart(got, expected):
    """The largest difference of a film's maps (N, h, w), as a share of the norm of the expected one."""
    import numpy as np

    norms = np.linalg.norm(expected, axis=(1, 2))
    return float((np.linalg.norm(got - expected, axis=(1, 2)) / np.where(norms > 0, norms, 1)).max())


def _far(got, expected, tolerance) -> bool:
    import numpy as np

    return not np.allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=tolerance)


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
