from kxray.layers.film_input import film_input
from kxray.layers.random_affine import RandomAffine

__all__ = ["RandomAffine", "film_input"]
