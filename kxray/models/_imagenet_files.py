"""The files of ImageNet weights: their names, where they come from, their checksums; KXRAY_WEIGHTS."""

import hashlib
import os
from pathlib import Path

FOLDER_VARIABLE = "KXRAY_WEIGHTS"
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"
_TF_KERNELS = "_weights_tf_dim_ordering_tf_kernels_notop.h5"
# Application -> where its file without top lies, and the checksum that the sources of keras.applications
# state: MD5, SHA-256 (ConvNeXt) or none (MobileNet, MobileNetV2). Of torchvision's file the name holds the
# beginning of its SHA-256.
_FILES = {
    "Xception": (f"{_KERAS}xception/xception{_TF_KERNELS}", "b0042744bf5b25fce3cb969f33bebb97"),
    "VGG16": (f"{_KERAS}vgg16/vgg16{_TF_KERNELS}", "6d6bbae143d832006294945121d1f1fc"),
    "VGG19": (f"{_KERAS}vgg19/vgg19{_TF_KERNELS}", "253f8cb515780f3b799900260a226db6"),
    "ResNet50": (f"{_KERAS}resnet/resnet50{_TF_KERNELS}", "4d473c1dd8becc155b73f8504c6f6626"),
    "ResNet101": (f"{_KERAS}resnet/resnet101{_TF_KERNELS}", "88cf7a10940856eca736dc7b7e228a21"),
    "ResNet152": (f"{_KERAS}resnet/resnet152{_TF_KERNELS}", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    "ResNet50V2": (f"{_KERAS}resnet/resnet50v2{_TF_KERNELS}", "fac2f116257151a9d068a22e544a4917"),
    "ResNet101V2": (f"{_KERAS}resnet/resnet101v2{_TF_KERNELS}", "c0ed64b8031c3730f411d2eb4eea35b5"),
    "ResNet152V2": (f"{_KERAS}resnet/resnet152v2{_TF_KERNELS}", "ed17cf2e0169df9d443503ef94b23b33"),
    "InceptionV3": (f"{_KERAS}inception_v3/inception_v3{_TF_KERNELS}", "bcbd6486424b2319ff4ef7d526e38f63"),
    "InceptionResNetV2": (
        f"{_KERAS}inception_resnet_v2/inception_resnet_v2{_TF_KERNELS}",
        "d19885ff4a710c122648d3b5c3b684e4",
    ),
    "MobileNet": (f"{_KERAS}mobilenet/mobilenet_1_0_224_tf_no_top.h5", None),
    "MobileNetV2": (
        f"{_KERAS}mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        None,
    ),
    "MobileNetV3Small": (
        f"{_KERAS}mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836",
    ),
    "MobileNetV3Large": (
        f"{_KERAS}mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389",
    ),
    "DenseNet121": (f"{_KERAS}densenet/densenet121{_TF_KERNELS}", "30ee3e1110167f948a6b9946edeeb738"),
    "DenseNet169": (f"{_KERAS}densenet/densenet169{_TF_KERNELS}", "b8c4d4c20dd625c148057b9ff1c1176b"),
    "DenseNet201": (f"{_KERAS}densenet/densenet201{_TF_KERNELS}", "c13680b51ded0fb44dff2d8f86ac8bb1"),
    "NASNetMobile": (f"{_KERAS}nasnet/NASNet-mobile-no-top.h5", "1ed92395b5b598bdda52abe5c0dbfd63"),
    "NASNetLarge": (f"{_KERAS}nasnet/NASNet-large-no-top.h5", "d81d89dc07e6e56530c4e77faddd61b5"),
    "EfficientNetB0": (
        "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
        "50bc09e76180e00e4465e1a485ddc09d",
    ),
    "EfficientNetB1": (
        "https://storage.googleapis.com/keras-applications/efficientnetb1_notop.h5",
        "74c4e6b3e1f6a1eea24c589628592432",
    ),
    "EfficientNetB2": (
        "https://storage.googleapis.com/keras-applications/efficientnetb2_notop.h5",
        "111f8e2ac8aa800a7a99e3239f7bfb39",
    ),
    "EfficientNetB3": (
        "https://storage.googleapis.com/keras-applications/efficientnetb3_notop.h5",
        "af6d107764bb5b1abb91932881670226",
    ),
    "EfficientNetB4": (
        "https://storage.googleapis.com/keras-applications/efficientnetb4_notop.h5",
        "ebc24e6d6c33eaebbd558eafbeedf1ba",
    ),
    "EfficientNetB5": (
        "https://storage.googleapis.com/keras-applications/efficientnetb5_notop.h5",
        "38879255a25d3c92d5e44e04ae6cec6f",
    ),
    "EfficientNetB6": (
        "https://storage.googleapis.com/keras-applications/efficientnetb6_notop.h5",
        "9ecce42647a20130c1f39a5d4cb75743",
    ),
    "EfficientNetB7": (
        "https://storage.googleapis.com/keras-applications/efficientnetb7_notop.h5",
        "cbcfe4450ddf6f3ad90b1b398090fe4a",
    ),
    "EfficientNetV2B0": (
        f"{_KERAS}efficientnet_v2/efficientnetv2-b0_notop.h5",
        "893217f2bb855e2983157299931e43ff",
    ),
    "EfficientNetV2B1": (
        f"{_KERAS}efficientnet_v2/efficientnetv2-b1_notop.h5",
        "0e80663031ca32d657f9caa404b6ec37",
    ),
    "EfficientNetV2B2": (
        f"{_KERAS}efficientnet_v2/efficientnetv2-b2_notop.h5",
        "1dfe2e7a5d45b6632553a8961ea609eb",
    ),
    "EfficientNetV2B3": (
        f"{_KERAS}efficientnet_v2/efficientnetv2-b3_notop.h5",
        "f6abf7b5849ac99a89b50dd3fd532856",
    ),
    "EfficientNetV2S": (
        f"{_KERAS}efficientnet_v2/efficientnetv2-s_notop.h5",
        "af0682fb74e8c54910f2d4393339c070",
    ),
    "EfficientNetV2M": (
        f"{_KERAS}efficientnet_v2/efficientnetv2-m_notop.h5",
        "1b8dc055df72dde80d614482840fe342",
    ),
    "EfficientNetV2L": (
        f"{_KERAS}efficientnet_v2/efficientnetv2-l_notop.h5",
        "b0b66b5c863aef5b46e8608fe1711615",
    ),
    "ConvNeXtTiny": (
        f"{_KERAS}convnext/convnext_tiny_notop.h5",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    ),
    "ConvNeXtSmall": (
        f"{_KERAS}convnext/convnext_small_notop.h5",
        "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
    ),
    "ConvNeXtBase": (
        f"{_KERAS}convnext/convnext_base_notop.h5",
        "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
    ),
    "ConvNeXtLarge": (
        f"{_KERAS}convnext/convnext_large_notop.h5",
        "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
    ),
    "ConvNeXtXLarge": (
        f"{_KERAS}convnext/convnext_xlarge_notop.h5",
        "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
    ),
    "AlexNet": ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"),
}
# Where Keras keeps a file under another name than that of its address.
_KEPT_AS = {"NASNetMobile": "nasnet_mobile_no_top.h5", "NASNetLarge": "nasnet_large_no_top.h5"}


def file_of(application) -> tuple[str, str, str | None]:
    """(file name, address, checksum or None) of an application's ImageNet weights."""
    address, checksum = _FILES[application]
    return _KEPT_AS.get(application, address.rpartition("/")[2]), address, checksum


def fetch(application) -> Path:
    """The file of an application's ImageNet weights.

    Looked for in the folder that KXRAY_WEIGHTS names, then in Keras's own cache, then downloaded into it.

    Args:
        application: name in `keras.applications`, or "AlexNet".

    Raises:
        ValueError: a wrong checksum, or no file and no network; the line says which file to fetch and where
            to put it. Or a network of ours that nobody trained on ImageNet.
    """
    import keras

    if application not in _FILES:
        raise ValueError(
            f"imagenet: nobody trained {application} on it; start from a run or a .keras file, or at random"
        )
    name, address, checksum = file_of(application)
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise ValueError(
                f"{FOLDER_VARIABLE} names {folder}, which is no folder; expected one with {name}"
            )
        if (folder / name).is_file():
            _check(folder / name, checksum, address)
            return folder / name
    # get_file knows whole checksums only.
    whole = checksum if checksum and len(checksum) >= 32 else None
    try:
        path = Path(keras.utils.get_file(name, address, cache_subdir="models", file_hash=whole))
    except Exception as error:  # a bare Exception where the download fails
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(address, "it")
        raise ValueError(
            f"imagenet: {name} is not here and could not be downloaded; on a connected machine fetch "
            f"{address}, put it into a folder and set {FOLDER_VARIABLE}={folder or 'FOLDER'} ({reason})"
        ) from error
    _check(path, checksum, address)
    return path


def _check(path, checksum, address) -> None:
    if checksum is None:
        return
    found = hashlib.md5(usedforsecurity=False) if len(checksum) == 32 else hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    if not found.hexdigest().startswith(checksum):
        raise ValueError(
            f"{path}: its {found.name.upper()} is {found.hexdigest()[: len(checksum)]}, expected {checksum}: "
            f"damaged or another file; fetch {address} again"
        )
