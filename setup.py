from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

serve = ["tensorflow-serving-api>=2.16.1", "grpcio>=1.60", "werkzeug>=3.0"]
report = ["matplotlib>=3.8", "jinja2>=3.1"]
dicom_decoders = [
    "pylibjpeg>=2.0",
    "pylibjpeg-openjpeg>=2.3",
    "pylibjpeg-rle>=2.0",
    "pyjpegls>=1.4",
    # JPEG lossless; the alternative, pylibjpeg-libjpeg, is GPLv3 and stays the user's choice.
    "python-gdcm>=3.0.24",
]

setup(
    name="kxray",
    version="0.1.0",
    description="From a few hundred X-ray films to a small, explained, served Keras model",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["kxray*", "training*", "serving*"]) + ["saved_models"],
    package_data={
        "training": ["report/*.j2"],
        "serving": ["*.config", "*.yaml"],
        "saved_models": ["*.md", "**/*"],
    },
    install_requires=[
        "tensorflow>=2.16.2",
        "keras>=3.4",
        "numpy>=1.26",
        "pandas>=2.1",
        "scipy>=1.11",
        "scikit-learn>=1.4",
        "scikit-image>=0.22",
        "SimpleITK>=2.3",
        "pillow>=10.2",
        "tifffile>=2024.1.30",
        "pydicom>=3.0",
        "highdicom>=0.24",
        *dicom_decoders,
        "click>=8.1",
        "rich>=13.7",
        "tensorboard>=2.16",
        *report,
        *serve,
    ],
    extras_require={
        "test": [
            *("pytest>=8.0", "pytest-timeout>=2.3", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.6"),
            *("safetensors>=0.4", "tf-keras-vis>=0.8.7"),
        ],
        # Score-CAM and activation maximisation.
        "vis": ["tf-keras-vis>=0.8.7"],
        # AlexNet's ImageNet weights in that format.
        "safetensors": ["safetensors>=0.4"],
        # Both are part of the default install; the names remain for those who list extras explicitly.
        "serve": serve,
        "report": report,
        # tensorflow-io 0.37.1 is its last release and loads on TensorFlow 2.16-2.17 only.
        "tensorflow-io": ["tensorflow>=2.16.2,<2.18", "tensorflow-io==0.37.1"],
        "gpu": ["tensorflow[and-cuda]>=2.16.2"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
