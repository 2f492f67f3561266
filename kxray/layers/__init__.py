from kxray.layers.film_input import film_input
from kxray.layers.layer_relevance import LayerRelevance
from kxray.layers.random_affine import RandomAffine
from kxray.layers.random_dihedral import RandomDihedral, dihedral_views
from kxray.layers.random_exposure import RandomExposure

__all__ = [
    "LayerRelevance",
    "RandomAffine",
    "RandomDihedral",
    "RandomExposure",
    "dihedral_views",
    "film_input",
]
