"""Takes a stage of a kxray model, adds a head, and uses the result like any Keras model.

python examples/extend_a_model.py
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import kxray
from kxray.data.phantom import thorax


def films(count, seed):
    """Phantom chest films (N, 64, 64, 1) in [0, 1], and whether each heart is enlarged."""
    spec = kxray.ModelSpec("view_cnn", ("frontal", "lateral"), "binary", (64, 64))
    resize = kxray.layers.film_input(spec)
    findings = [("Cardiomegaly",) if index % 2 else () for index in range(count)]
    made = [thorax(seed, index, findings=found, size=128) for index, found in enumerate(findings)]
    pixels = np.stack([film.pixels for film in made])[..., None]
    return np.asarray(resize(pixels)), np.arange(count) % 2


def build():
    """The view classifier up to its third stage, with a head that looks for an enlarged heart."""
    base = kxray.models.build("view_cnn")
    stage = base.get_layer("conv2d_3").output
    x = keras.layers.GlobalAveragePooling2D()(stage)
    x = keras.layers.Dense(1, activation="sigmoid", name="enlarged_heart")(x)
    return keras.Model(base.input, x, name="enlarged_heart")


def main(count=64, epochs=4):
    model = build()
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    images, labels = films(count, seed=0)
    model.fit(images, labels, epochs=epochs, verbose=2)

    maps = kxray.explain.attribute(model, images[:4], target=0, method="grad_cam")
    print("Grad-CAM", maps.shape, "from", maps.min(), "to", maps.max())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "enlarged_heart.keras"
        model.save(path)
        again = keras.saving.load_model(path)
    difference = np.abs(again.predict(images, verbose=0) - model.predict(images, verbose=0)).max()
    print("saved and loaded: largest difference", difference)
    return model, maps, difference


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
