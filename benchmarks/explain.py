"""What an explanation costs: python -m benchmarks.explain

Maps of a batch of films against one forward pass of the same network, DenseNet-121 with three stages, each
traced once. Multi-scale CAM of all classes at once is expected to cost at most 1.1 forward passes.
"""

import os
import statistics
import time

import click
import numpy as np


@click.command(help=__doc__)
@click.option("--side", default=224, show_default=True, help="Side of the films in pixels.")
@click.option("--batch", default=8, show_default=True, help="Films a call.")
@click.option("--rounds", default=15, show_default=True, help="Calls of each way, in turns.")
def main(side, batch, rounds):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    import kxray
    from kxray import explain
    from kxray.explain.graph import with_logits

    model = kxray.models.build("multiscale_densenet", num_labels=4, image_size=(side, side))
    films = np.random.default_rng(0).random((batch, side, side, 1), np.float32)
    run = with_logits(model)
    forward = tf.function(lambda images: run(images)[0], input_signature=[tf.TensorSpec(films.shape)])
    one_class = {name: explain.explainer(model, name) for name in explain.default_methods(model)}
    target = np.zeros(batch, np.int32)
    ways = {
        "forward pass": lambda: forward(films).numpy(),
        "multi-scale CAM, 4 classes": lambda: explain.multiscale_cams(model, films),
        **{
            f"{name}, one class": lambda traced=traced: traced(films, target).numpy()
            for name, traced in one_class.items()
        },
    }
    seconds = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, call in ways.items():
            began = time.perf_counter()
            call()
            # The first call traces.
            if number:
                seconds[name].append(time.perf_counter() - began)
    click.echo(f"DenseNet-121, {batch} films of {side} px, {rounds} rounds, {os.cpu_count()} cores")
    for name, values in seconds.items():
        pairs = zip(values, seconds["forward pass"], strict=True)
        ratio = statistics.median(one / plain for one, plain in pairs)
        own = 1000 * statistics.median(values) / batch
        click.echo(f"{name:<28} {own:7.1f} ms a film, {ratio:.2f} forward passes")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.explain")
