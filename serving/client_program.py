"""The shell side of serving.client: `predict`, `counterfactual`, `generate`, `describe`, `methods`,
`targets`, `status`."""

import dataclasses
import functools
import io
import json
import os
import sys
from pathlib import Path

import click

from kxray.io import read_image
from kxray.io.files import write_whole
from kxray.io.marks import class_folder
from serving import explanation_picture
from serving.client import DEFAULT_MODEL, Client, InvalidFilm, InvalidRequest, ServingError
from serving.shell import one_line, silent_stderr

# Written before the next ones are asked for.
_FILMS_AT_A_TIME = 16


def asking(command):
    """The options that say whom to ask, and one-line errors."""

    @click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of the served model.")
    @click.option(
        "--address", default="localhost:8500", show_default=True, help="host:port of the server's gRPC API."
    )
    @click.option(
        "--version", type=click.IntRange(0, 2**63 - 1), help="Ask this version instead of the newest."
    )
    @click.option(
        "--version-label", default="", help="Ask the version with this label of the server's config."
    )
    @click.option("--timeout", default=30.0, show_default=True, help="Seconds an answer may take.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
    @functools.wraps(command)
    def asked(model, address, version, version_label, timeout, as_json, **options):
        try:
            _import_quietly()
            with Client(address, model, version, version_label, timeout) as client:
                command(client, as_json, **options)
        except (ServingError, ValueError, OSError) as error:
            _fail(error)
            sys.exit(2)

    return asked


@click.group()
def main():
    """Asks a served model about films."""


@main.command()
@click.argument("films", nargs=-1, required=True, type=click.Path())
@click.option(
    "--explain", "picture", type=click.Path(), help="Save the explanation over the film as this PNG."
)
@click.option(
    "--method", help="Explanation method, e.g. grad_cam or rap: one of `methods`; the first one by default."
)
@click.option("--label", help="Label to explain, e.g. one of `describe`; the predicted one by default.")
@asking
def predict(client, as_json, films, picture, method, label):
    """Classifies FILMS: PNG, JPEG, TIFF or DICOM.

    \b
    predict a.dcm b.png --json
    predict a.dcm --explain why.png --label lateral --method rap

    In the PNG red speaks for the label and blue against it, 0 has no colour; the strongest place of a map has
    full colour, and the value it stands for is written down (in the caption, and in the PNG's Description). A
    map with a value for every pixel (gradients, lrp, rap) has full colour from its 99.5th percentile on: a
    few pixels stand out of it. A multi-scale model adds a panel for each of its stages, with the stage's
    relevance weight for that label. Evidence comes with a yellow box around what speaks most for the label.
    """
    if picture and len(films) > 1:
        raise ValueError(f"--explain takes one film, got {len(films)}")
    if (method or label) and not picture:
        raise ValueError("--method and --label belong to --explain OUT.png")
    failed = False
    for path in films:
        try:
            film = read_image(path)
        except ValueError as error:  # the other films may be readable
            _fail(error)
            failed = True
            continue
        try:
            if picture:
                explanation = client.explain(film, label, method)
                _save(film, explanation, picture)
                prediction = explanation.prediction
            else:
                prediction = client.predict(film)
        except (InvalidFilm, InvalidRequest) as error:  # the server may take the other films
            _fail(f"{path}: {error}")
            failed = True
            continue
        _print(path, prediction, as_json)
    if failed:
        sys.exit(2)


@main.command()
@click.argument("path", metavar="FILM", type=click.Path())
@click.option(
    "--target",
    help="What the model is to say, one of `targets`; by default the opposite of what it says of the film.",
)
@click.option("--out", "picture", required=True, type=click.Path(), help="Save the strip as this PNG.")
@click.option(
    "--steps",
    type=click.IntRange(0, 16),
    default=5,
    show_default=True,
    help="Films between film and counterfactual, both included, each asked about; 0: none.",
)
@asking
def counterfactual(client, as_json, path, target, picture, steps):
    """Shows what would have to change in FILM for the model to say something else.

    \b
    counterfactual film.dcm --model chest_counterfactuals --target "no Effusion" --out strip.png

    The strip shows the film as the network takes it, the counterfactual, their difference over the film (red
    where the counterfactual is brighter, blue where it is darker), and the mask of what the generator wanted
    to change; below, the films film + t * difference for t from 0 to 1, each with what the model says of it.
    A counterfactual shows what the model looks at, not how the patient would be.
    """
    film = read_image(path)
    answer = client.counterfactual(film, target)
    places, films = answer.along(steps)
    said = [prediction.probabilities for prediction in client.predict_batch(list(films))]
    strip = explanation_picture.draw_counterfactual(
        film.pixels, answer, list(zip(places, films, said, strict=True))
    )
    texts = {**answer.texts, "Description": explanation_picture.describe_counterfactual(answer)}
    _write_picture(strip, texts, picture)
    prediction, label = answer.prediction, answer.label
    if as_json:
        facts = {"path": path, "target": answer.target, "reached": answer.reached}
        after = {"probabilities_after": answer.probabilities_after}
        click.echo(json.dumps(facts | dataclasses.asdict(prediction) | after))
        return
    click.echo(
        f"{path}: {answer.target} {'reached' if answer.reached else 'not reached'}  {label} "
        f"{prediction.probabilities[label]:.4f} -> {answer.probabilities_after[label]:.4f}  "
        f"{prediction.model} version {prediction.model_version}"
    )


@main.command()
@asking
def targets(client, as_json):
    """Prints what `counterfactual` can be asked for, one a line."""
    known = client.targets()
    click.echo(json.dumps(known) if as_json else "\n".join(known))


@main.command()
@click.option("--class", "label", required=True, help="One of the labels of `describe`.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Films to make.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of the first film; the next have the following seeds.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write PNGs to.")
@asking
def generate(client, as_json, label, count, seed, out):
    """Makes synthetic films with a served generator.

    \b
    generate --model chest_gan --class Nodule --count 4 --seed 0 --out made

    Writes 16-bit PNGs, OUT/Nodule-seed0.png and so on; their text says that they are synthetic, which model
    made them, of which class and seed. The same class and seed give the same film. They show no patient, and
    kxray lets none of them into validation or test.
    """
    out.mkdir(parents=True, exist_ok=True)
    for own_seed in range(seed, seed + count, _FILMS_AT_A_TIME):
        films = client.generate(label, min(_FILMS_AT_A_TIME, seed + count - own_seed), own_seed)
        for film in films:
            path = out / f"{class_folder(label)}-seed{film.seed}.png"
            write_whole(path, film.png())
            facts = {"path": str(path), "label": film.label, "seed": film.seed}
            facts |= {"model": film.model, "model_version": film.model_version}
            told = f"{path}: synthetic {label}  {film.model} version {film.model_version}"
            click.echo(json.dumps(facts) if as_json else told)


@main.command()
@asking
def describe(client, as_json):
    """Prints the model's spec: labels, thresholds, input, provenance."""
    text = client.describe().to_json()
    click.echo(json.dumps(json.loads(text)) if as_json else text, nl=as_json)


@main.command()
@asking
def methods(client, as_json):
    """Prints the explanation methods of the model, one a line."""
    known = client.methods()
    click.echo(json.dumps(known) if as_json else "\n".join(known))


@main.command()
@asking
def status(client, as_json):
    """Prints the versions of the model on the server."""
    for entry in client.status():
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(entry)))
        else:
            click.echo(
                f"{client.model} version {entry.version}: {entry.state}"
                + (entry.error and f" ({entry.error})")
            )


def _print(path, prediction, as_json):
    if as_json:
        click.echo(json.dumps({"path": path, **dataclasses.asdict(prediction)}))
        return
    click.echo(
        f"{path}: {prediction.decision}  {prediction.label} {prediction.probability:.4f} "
        f"(threshold {prediction.threshold:.2f})  {prediction.model} version {prediction.model_version}"
    )


def _save(film, explanation, picture):
    prediction = explanation.prediction
    texts = {
        "Description": explanation_picture.describe(explanation),
        "Software": f"{prediction.model} version {prediction.model_version}",
    }
    _write_picture(explanation_picture.draw(film.pixels, explanation), texts, picture)


def _write_picture(drawn, texts, path):
    from PIL.PngImagePlugin import PngInfo

    facts = PngInfo()
    for keyword, text in texts.items():
        facts.add_text(keyword, text)
    png = io.BytesIO()
    drawn.save(png, "PNG", pnginfo=facts)
    try:
        write_whole(path, png.getvalue())
    except OSError as error:  # it names the temporary file
        raise OSError(error.errno, error.strerror, path) from None


def _fail(error):
    click.echo(f"error: {one_line(error)}", err=True)


def _import_quietly():
    # TensorFlow's start-up messages are written before it reads any setting; an error here stays one line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # It answers with films, not with a model: no graphics memory is taken for that.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    with silent_stderr():
        try:
            import tensorflow_serving.apis.predict_pb2  # noqa: F401
        except ImportError as error:
            missing = str(error)
        else:
            return
    raise ValueError(f"{missing}; pip install tensorflow-serving-api")
