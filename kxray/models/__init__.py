"""One builder a file; the folder is the registry.

model = kxray.models.build("view_cnn")
"""

import importlib
import inspect
import pkgutil
import zipfile
from pathlib import Path

__all__ = [
    "backbone_features",
    "backbone_names",
    "backbone_stages",
    "build",
    "check_backbone",
    "copy_aligner",
    "fetch_imagenet",
    "freeze_backbone",
    "latents",
    "load",
    "load_aligner",
    "load_backbone_weights",
    "load_counterfactual",
    "names",
    "set_masks",
    "weights_digest",
    "with_evidence",
]


def names() -> list[str]:
    """The models that `build` knows."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build(name: str, /, **options):
    """Builds a model by name.

    Args:
        name: one of `names()`.
        **options: the arguments of that model's own `build` function, which documents them.

    Returns:
        keras.Model, functional and uncompiled.

    Raises:
        ValueError: an unknown name (the known ones are listed) or an option the builder does not take.
    """
    if name not in names():
        raise ValueError(f"unknown model {name!r}; the known models are: {', '.join(names())}")
    builder = importlib.import_module(f"{__name__}.{name}").build
    taken = inspect.signature(builder).parameters
    for option in options:
        if option not in taken:
            raise ValueError(f"model {name!r} has no option {option!r}; its options are: {', '.join(taken)}")
    return builder(**options)


def backbone_names() -> list[str]:
    """The backbones of `build("transfer", backbone=...)`; `multiscale_densenet` taps some of them."""
    from kxray.models import _backbones

    return list(_backbones.BACKBONES)


def backbone_features(name) -> int:
    """The length F of a backbone's feature vector. ValueError if it is unknown."""
    from kxray.models import _backbones

    return _backbones.feature_count(name)


def backbone_stages(model) -> list[list[str]]:
    """The layers of a model's backbone that hold weights, stage by stage, shallow to deep.

    A stage is what works at one spatial resolution: a new one begins where the side of the maps falls below
    0.7 of the side that the stage began with. Read from the graph, so that it holds for every backbone. Dense
    layers on vectors (AlexNet) are the last stage; heads are left out.

    Args:
        model: functional keras.Model on a backbone, such as `build("transfer", ...)`.
    """
    from kxray.models import _backbones

    return _backbones.stages(model)


def check_backbone(backbone, taps=None, image_size=None) -> None:
    """Raises ValueError unless the backbone is known, has those stages, and takes films of that size.

    Args:
        backbone: its name.
        taps: how many of its last stages, or their names; None: none are tapped.
        image_size: (height, width) in pixels; None: any.
    """
    from kxray.models import _backbones

    _backbones.find(backbone)
    if taps is not None:
        _backbones.choose_stages(backbone, taps)
    if image_size is not None:
        _backbones.check_image_size(backbone, image_size)


def fetch_imagenet(backbone):
    """Finds the file of a backbone's ImageNet weights, or downloads it, before anything expensive begins.

    Args:
        backbone: one of `backbone_names()`.

    Returns:
        Its path, in the folder that the environment variable KXRAY_WEIGHTS names or in Keras's cache.

    Raises:
        ValueError: an unknown backbone, a wrong checksum, or no file and no network; the line says which file
            to fetch and where to put it.
    """
    from kxray.models import _backbones, _imagenet_files

    return _imagenet_files.fetch(_backbones.find(backbone).application)


def load_backbone_weights(model, backbone, source) -> int:
    """Starts a model's backbone from trained weights; its heads keep theirs.

    Args:
        model: a model on a named backbone, such as `build("transfer", backbone=...)`.
        backbone: its name.
        source: `"imagenet"`: the file of keras.applications (of AlexNet: torchvision's) in the folder that
            the environment variable KXRAY_WEIGHTS names, else Keras downloads it. Its checksum is verified,
            of AlexNet the first eight digits that torchvision states; for MobileNet and MobileNetV2 Keras
            states none. Or a `.weights.h5` or `.h5` file of `keras.applications` without top; for AlexNet a
            state dict of torchvision's as `.pth`, `.safetensors` or `.npz`. Or a `.keras` file or a run
            folder with a model of the same backbone. Where the model reads the film as one channel, a first
            convolution over RGB is summed over its channels, which gives exactly the output of a film
            repeated in all three.

    Returns:
        The number of layers that were set.

    Raises:
        FileNotFoundError, ValueError: no such source, a wrong checksum, or it does not hold this backbone, or
            holds another one.
    """
    from kxray.models import _weights

    return _weights.load_weights(model, backbone, source)


def weights_digest(model) -> str:
    """SHA-256 of names, shapes and values of a backbone's weights, heads left out; alike in every process."""
    from kxray.models import _weights

    return _weights.digest(model)


def freeze_backbone(model) -> None:
    """Leaves only the heads of a model trainable; its batch normalisation keeps its statistics."""
    from kxray.models import _backbones

    for layer in _backbones.weighted_layers(model).values():
        layer.trainable = False


def set_masks(model, masks) -> None:
    """Gives a `masked_densenet` the probability masks of its diseases.

    Args:
        model: `build("masked_densenet", ...)`, not with masking "none".
        masks: `kxray.data.masks.DiseaseMasks` with the model's labels in the model's order, or a float array
            (L, m, m) in [0, 1], upright in the aligned frame; resized to the grid that the model keeps.

    Raises:
        ValueError: a model without attention, or of films that are not square, another number of masks, or
            values outside [0, 1].
    """
    from kxray.models import masked_densenet

    masked_densenet.set_masks(model, masks)


def with_evidence(model, size=None):
    """A model that shows what a model saw for each label; it shares all of its layers and weights.

    It is not to be saved as .keras: save the model itself, and call this after loading it.

    Args:
        model: `build("masked_densenet", ...)` of any masking; any functional model whose logits are those of
            linear dense layers on globally averaged features gives its class activation maps.
        size: (H', W') of `evidence`; None: that of `evidence_aligned`.

    Returns:
        keras.Model from films (N, H, W, 1) to a dict of float32 tensors: `probabilities` (N, L); `logits`
        (N, L); `evidence_aligned` (N, h, w, L), signed, on the grid of the largest tapped stage: its mean
        over the places, plus a bias, is the logit (of several stages where the sides of their grids divide
        each other); `evidence` (N, H', W', L), the same in the film's frame, 0 where the aligned film does
        not reach; `aligned` (N, H, W, 1); `pose` (N, 4), rotation in radians, log scale, shift right and down
        in widths; `confidence` (N,). Without alignment `aligned` is the film, `pose` 0 and `confidence` 1.

    Raises:
        ValueError: a model whose logits come from something else.
    """
    from kxray.models import masked_densenet

    return masked_densenet.with_evidence(model, size)


def latents(seed, count, length):
    """What a GAN makes films of: float32 (count, length) from N(0, 1); row i depends on (seed, i) alone."""
    from kxray.models import _conditional_gan

    return _conditional_gan.latents(seed, count, length)


def load(path):
    """Reads a trained model with its contract.

    Args:
        path: a run folder (holding model.keras and spec.json), or a .keras file with spec.json beside it.

    Returns:
        (keras.Model, kxray.ModelSpec)

    Raises:
        FileNotFoundError: nothing there, or the spec is missing.
        ValueError: a file that is not what it should be.
    """
    from kxray.spec import ModelSpec

    path = Path(path)
    model_path = path / "model.keras" if path.is_dir() else path
    spec_path = model_path.with_name("spec.json")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run folder or .keras file")
    for needed, what in ((model_path, "trained model"), (spec_path, "model spec")):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{path}: {what} {needed.name} is missing; a run folder of training.fit holds both "
                "model.keras and spec.json (an interrupted run gets them with --resume)"
            )
    return _read_keras(model_path), ModelSpec.read(spec_path)


def load_counterfactual(path):
    """Reads a counterfactual GAN with the classifier that it explains.

    Args:
        path: a run folder of `training.fit counterfactual_gan`, which holds the GAN and, in the folder
            classifier, a copy of the classifier.

    Returns:
        (GAN, its kxray.ModelSpec, whose labels are the names of its targets, classifier, its ModelSpec)

    Raises:
        FileNotFoundError: nothing there, or one of the files is missing.
        ValueError: a run of something else, or a GAN that does not fit the classifier.
    """
    path = Path(path)
    gan, spec = load(path)
    if spec.task != "counterfactual":
        raise ValueError(
            f"{path}: a run of {spec.name!r}, task {spec.task}; give a run of training.fit counterfactual_gan"
        )
    folder = path if path.is_dir() else path.parent
    try:
        classifier, classifier_spec = load(folder / "classifier")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: without the classifier that it explains: {error}") from None
    if classifier_spec.image_size != spec.image_size:
        raise ValueError(
            f"{path}: makes films of {spec.image_size}, its classifier takes {classifier_spec.image_size}; "
            "the folder classifier is of another run"
        )
    return gan, spec, classifier, classifier_spec


def load_aligner(path):
    """Reads a trained aligner.

    Args:
        path: a run folder of `training.fit align` (holding model.keras), or a .keras file.

    Returns:
        keras.Model from films to {"aligned", "pose", "confidence"}; its layer "align" is a
        `kxray.layers.SimilarityAlign`.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not a Keras file, or not an aligner.
    """
    from kxray.models import aligner

    path = Path(path)
    model_path = path / "model.keras" if path.is_dir() else path
    if not model_path.is_file():
        raise FileNotFoundError(
            f"{path}: no aligner there; give a run folder of training.fit align or a .keras file"
        )
    model = _read_keras(model_path)
    aligner.check(model, model_path)
    return model


def _read_keras(path):
    import keras

    try:
        return keras.saving.load_model(path, compile=False)
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable .keras file: {reason}") from error


def copy_aligner(aligner, model) -> None:
    """Gives the layer "align" of a model the weights of a trained aligner, template and limits with them.

    Before the model is first called or compiled, as its `fill_value` is taken over, too.

    Args:
        aligner: what `load_aligner` gives.
        model: keras.Model with a `kxray.layers.SimilarityAlign` named "align", of any film size.

    Raises:
        ValueError: one of them has no such layer, or the layers differ in size, width or steps.
    """
    from kxray.models import aligner as aligners

    aligners.copy_weights(aligner, model)
