"""What an explanation costs: python -m benchmarks.explain

Maps of a batch of films against one forward pass of the same network (DenseNet-121 with three stages), each
traced once, and tf-keras-vis on the same network and films where it is installed (pip install "kxray[vis]").

A ratio is that of CPU seconds, which hold still on a busy machine; wall seconds stand beside it. Every call
is followed by a forward pass, and the median of their ratios is shown. Peak memory is that of the whole
process while the method runs, with TensorFlow and all networks in it.

Expected, in forward passes: Grad-CAM 1.2, multi-scale CAM of all classes 1.1, gradient 2.4, LRP epsilon-plus
4, RAP 6; integrated gradients of 50 steps 50 gradients; tf-keras-vis at least 4 times slower in Grad-CAM and
twice in SmoothGrad.
"""

import os
import statistics
import time
import warnings

import click
import numpy as np

_SLOW = ("smoothgrad", "integrated_gradients", "score_cam")


@click.command(help=__doc__)
@click.option("--side", default=224, show_default=True, help="Side of the films in pixels.")
@click.option("--batch", default=8, show_default=True, help="Films a call.")
@click.option("--rounds", default=7, show_default=True, help="Calls of each way; of the slow ones, one.")
@click.option("--methods", default="all", show_default=True, help="Names with commas, or all.")
@click.option("--peer/--no-peer", default=True, show_default=True, help="Also tf-keras-vis.")
def main(side, batch, rounds, methods, peer):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    import kxray
    from kxray import explain
    from kxray.explain.head import with_logits

    model = kxray.models.build("multiscale_densenet", num_labels=4, image_size=(side, side))
    films = np.random.default_rng(0).random((batch, side, side, 1), np.float32)
    run = with_logits(model)
    forward = tf.function(lambda images: run(images)[0], input_signature=[tf.TensorSpec(films.shape)])
    target = np.zeros(batch, np.int32)
    chosen = [name for name in explain.METHODS if name != "cam"] if methods == "all" else methods.split(",")
    ways = {}
    if methods == "all":
        ways["multi-scale CAM, all classes"] = lambda: explain.multiscale_cams(model, films)
    for name in chosen:
        traced = explain.explainer(model, name)
        ways[name] = lambda traced=traced: traced(films, target).numpy()
    if peer:
        warnings.filterwarnings("ignore", module="keras|tf_keras_vis")
        ways |= _peers(model, films)
    click.echo(f"DenseNet-121, {batch} films of {side} px, {rounds} rounds, {os.cpu_count()} cores")
    click.echo(f"{'':<34}{'CPU':>9}{'wall':>9}{'wall ms':>10}{'peak MB':>9}")
    click.echo(f"{'':<34}{'forward passes':>18}{'a film':>10}")
    costs = {
        name: _cost(name, call, lambda: forward(films).numpy(), rounds, batch) for name, call in ways.items()
    }
    for name, other, what in (
        ("integrated_gradients", "gradient", "integrated gradients of 50 steps in gradients (expected 50)"),
        ("tf-keras-vis Grad-CAM", "grad_cam", "tf-keras-vis Grad-CAM against ours (expected at least 4)"),
        ("tf-keras-vis saliency", "gradient", "tf-keras-vis saliency against our gradient"),
        ("tf-keras-vis SmoothGrad, 20", "smoothgrad", "tf-keras-vis SmoothGrad against ours (at least 2)"),
    ):
        if name in costs and other in costs:
            ratios = [one / two for one, two in zip(costs[name], costs[other], strict=True)]
            click.echo(f"{what}: {ratios[0]:.1f} in CPU seconds, {ratios[1]:.1f} in wall seconds")


def _cost(name, call, forward, rounds, batch):
    """(CPU, wall) forward passes that a call takes; prints its line."""
    from training.memory import peak_mb, reset_peak

    call(), forward()  # The first call traces.
    if any(slow in name for slow in _SLOW) or "SmoothGrad" in name:
        rounds = 1
    ratios, wall = [], []
    resettable = reset_peak()
    for _ in range(rounds):
        ours, theirs = _seconds(call), _seconds(forward)
        ratios.append((ours[0] / theirs[0], ours[1] / theirs[1]))
        wall.append(ours[1])
    cpu, real = (statistics.median(values) for values in zip(*ratios, strict=True))
    each = 1000 * statistics.median(wall) / batch
    peak = f"{peak_mb():9.0f}" if resettable else ""
    click.echo(f"{name:<34}{cpu:9.2f}{real:9.2f}{each:10.0f}{peak}")
    return cpu, real


def _seconds(call):
    began = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def _peers(model, films):
    """tf-keras-vis on the same network: its Grad-CAM, saliency and SmoothGrad of 20 samples."""
    try:
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.saliency import Saliency
        from tf_keras_vis.utils.model_modifiers import ReplaceToLinear
        from tf_keras_vis.utils.scores import CategoricalScore
    except ImportError:
        click.echo('tf-keras-vis is not installed: pip install "kxray[vis]"')
        return {}
    score = CategoricalScore([0] * len(films))
    cam = Gradcam(model, model_modifier=ReplaceToLinear(), clone=True)
    saliency = Saliency(model, model_modifier=ReplaceToLinear(), clone=True)
    return {
        "tf-keras-vis Grad-CAM": lambda: cam(score, films),
        "tf-keras-vis saliency": lambda: saliency(score, films),
        "tf-keras-vis SmoothGrad, 20": lambda: saliency(score, films, smooth_samples=20, smooth_noise=0.1),
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.explain")
