"""The two calls of this room: `attribute` for maps now, `explainer` for a traced function that exports."""

import dataclasses
import hashlib
import inspect

import numpy as np

from kxray.explain import cam, evidence, gradients, graph, lrp, multiscale, rap

METHODS = {
    "gradient": gradients.gradient,
    "input_x_gradient": gradients.input_x_gradient,
    "smoothgrad": gradients.smoothgrad,
    "integrated_gradients": gradients.integrated_gradients,
    "guided_backprop": gradients.guided_backprop,
    "cam": cam.cam,
    "grad_cam": cam.grad_cam,
    "grad_cam_pp": cam.grad_cam_pp,
    "layer_cam": cam.layer_cam,
    "hires_cam": cam.hires_cam,
    "multiscale_cam": multiscale.multiscale_cam,
    "evidence": evidence.evidence,
    "lrp": lrp.lrp,
    "rap": rap.rap,
}
PREDICTED = -1
# Methods whose maps lie on the features' grid, in the aligned frame where a model aligns its films.
_OF_FEATURES = ("cam", "grad_cam", "grad_cam_pp", "layer_cam", "hires_cam", "multiscale_cam")
# Explainers that `attribute` keeps for a model; each holds its graph.
_REMEMBERED = 32


def default_methods(model) -> tuple[str, ...]:
    """The methods that suit a model, best first, grad_cam last.

    Before it comes evidence where the model attends to diseases or aligns its films, else multiscale_cam
    where it can read the model.

    Args:
        model: functional keras.Model.

    Raises:
        ValueError: no functional model of one input and one output.
    """
    graph.require_functional(model)
    if evidence.suits(model):
        return ("evidence", "grad_cam")
    return ("multiscale_cam", "grad_cam") if multiscale.reads(model) else ("grad_cam",)


def explainer(model, method, upsample=False, **options):
    """Builds a traced explanation function made of plain TensorFlow ops.

    Args:
        model: functional keras.Model with one image input (N, H, W, C) and one output (N, L).
        method: one of `kxray.explain.METHODS`.
        upsample: whether maps at feature resolution (CAM methods) are resized to the input's height and
            width, bilinearly with half-pixel centres. Maps of pixel methods are there already.
        **options: the method's own options.

    Returns:
        tf.function (images float32 (N, H, W, C), target int32 (N,)) -> float32 (N, H, W, C), or (N, h, w, 1)
        for CAM methods. Traced once for all batch sizes. The score explained is the pre-activation logit of
        unit `target`, -1 being the unit with the largest one; maps are signed and raw, and lie on the film as
        it was given, also where the model aligns it first.

    Raises:
        ValueError: unknown method or option, or a model that the method cannot read.
    """
    import tensorflow as tf

    explain = detailed_explainer(model, method, upsample, **options)

    @tf.function(input_signature=explain.input_signature)
    def traced(images, target):
        return explain(images, target)["heatmap"]

    return traced


def detailed_explainer(model, method, upsample=False, **options):
    """Builds a traced function that returns a map with all that its method computes beside it.

    Args:
        model, method, upsample, **options: see `explainer`.

    Returns:
        tf.function (images float32 (N, H, W, C), target int32 (N,)) -> dict of tensors, batch first:
        `heatmap` float32 (N, H, W, C) or (N, h, w, 1), `logits` float32 (N, L), and what the method adds. A
        target of -1 explains the unit with the largest logit, so that prediction and explanation share one
        forward pass.

    Raises:
        ValueError: see `explainer`.
    """
    import tensorflow as tf

    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"unknown explanation method {method!r}; the known ones are: {', '.join(METHODS)}")
    taken = [*inspect.signature(METHODS[method]).parameters][1:]
    for option in options:
        if option not in taken:
            raise ValueError(
                f"{method} has no option {option!r}; its options are: {', '.join([*taken, 'upsample'])}"
            )
    graph.require_functional(model)
    explain = METHODS[method](model, **options)
    if method in _OF_FEATURES:
        explain = evidence.in_film_frame(model, explain, upsample)
    signature = [
        tf.TensorSpec([None, *model.inputs[0].shape[1:]], tf.float32, name="images"),
        tf.TensorSpec([None], tf.int32, name="target"),
    ]

    @tf.function(input_signature=signature)
    def traced(images, target):
        results = explain(images, target)
        given, wanted = results["heatmap"].shape[1:3], images.shape[1:3]
        if upsample and not (given.is_fully_defined() and given == wanted):
            results["heatmap"] = tf.image.resize(results["heatmap"], tf.shape(images)[1:3])
        # A model of 64-bit layers computes its maps in 64 bits.
        return {
            name: tf.cast(value, tf.float32) if value.dtype.is_floating else value
            for name, value in results.items()
        }

    return traced


def attribute(model, images, target, method, **options):
    """Explains a batch of films.

    Args:
        model: functional keras.Model.
        images: float array (N, H, W, C), the model's own input, in [0, 1] for kxray models.
        target: class index (an output unit), or one an image. A one-unit (sigmoid) model has unit 0 only:
            positive values speak for its positive label, negative ones against it.
        method: one of `kxray.explain.METHODS`.
        **options: see `explainer`.

    Returns:
        float32 array (N, H, W, C), or (N, h, w, 1) for CAM methods unless `upsample=True`.

    Raises:
        ValueError: images, target or method do not fit the model.
    """
    images, targets = checked(model, images, target)
    return _remembered_explainer(model, method, options)(images, targets).numpy()


def checked(model, images, target):
    """Images float32 (N, H, W, C) and targets int32 (N,) that fit the model; see `attribute`."""
    graph.require_functional(model)
    images = np.asarray(images)
    expected = tuple(model.inputs[0].shape)
    fits = images.ndim == len(expected) and all(
        want in (None, got) for want, got in zip(expected[1:], images.shape[1:], strict=False)
    )
    if not fits or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"expected float images {expected}, got {images.dtype} {images.shape}; "
            "films go through kxray.read_image() and kxray.layers.film_input() first"
        )
    if not len(images):
        raise ValueError("expected at least one image, got an empty batch")
    num_units = model.outputs[0].shape[-1]
    targets = np.asarray(target)
    if targets.ndim > 1 or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"target must be a class index or one an image, got {target!r}")
    if targets.ndim == 1 and len(targets) != len(images):
        raise ValueError(f"got {len(targets)} targets for {len(images)} images")
    if targets.size and (targets.min() < 0 or targets.max() >= num_units):
        raise ValueError(
            f"target must be in 0..{num_units - 1}, the output units of {model.name!r}, got {target!r}"
            + ("; its one unit speaks for the positive label" if num_units == 1 else "")
        )
    targets = np.broadcast_to(targets, (len(images),)).astype("int32")
    return images.astype("float32"), targets


def _remembered_explainer(model, method, options):
    # Kept in the model's own dictionary, so that it dies with the model; a weak-key table would not let it.
    remembered = model.__dict__.setdefault("_kxray_explainers", {})
    key = (method, _fingerprint(options))
    if key not in remembered:
        while len(remembered) >= _REMEMBERED:
            del remembered[next(iter(remembered))]
        # With the options, so that no later object takes the address of one that the key names.
        remembered[key] = (explainer(model, method, **options), options)
    return remembered[key][0]


def _fingerprint(value):
    """A hashable key: equal for equal numbers, texts, arrays and containers of them, else by identity."""
    if isinstance(value, dict):
        return "dict", *sorted((str(name), _fingerprint(part)) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return "list", *(_fingerprint(part) for part in value)
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), str(value.shape), hashlib.sha256(value.tobytes()).hexdigest()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, _fingerprint(vars(value))
    if value is None or isinstance(value, (bool, int, float, str, np.number)):
        return type(value).__name__, repr(value)
    return type(value).__name__, str(id(value))
