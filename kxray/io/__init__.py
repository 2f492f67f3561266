"""Films in: PNG, JPEG, TIFF and DICOM to float32 pixels in [0, 1], bone bright.

Importing this room imports neither TensorFlow nor Keras.
"""

from kxray.io.film import Film, FilmError
from kxray.io.image import encode_png16, write_png16
from kxray.io.parallel import read_films
from kxray.io.read import read_image
from kxray.io.readers import choose_dicom_reader

__all__ = [
    "Film",
    "FilmError",
    "choose_dicom_reader",
    "encode_png16",
    "read_films",
    "read_image",
    "write_png16",
]
