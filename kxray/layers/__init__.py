# First of all: as soon as Keras is there, what registers with it is imported, and that imports these layers.
import keras  # noqa: F401

from kxray.layers.diff_augment import DiffAugment
from kxray.layers.disease_attention import DiseaseAttention
from kxray.layers.film_input import film_input
from kxray.layers.layer_relevance import LayerRelevance
from kxray.layers.random_affine import RandomAffine
from kxray.layers.random_dihedral import RandomDihedral, dihedral_views
from kxray.layers.random_exposure import RandomExposure
from kxray.layers.self_attention import SelfAttention, scheduled_tau
from kxray.layers.similarity_align import SimilarityAlign
from kxray.layers.similarity_sampler import SimilaritySampler

__all__ = [
    "DiffAugment",
    "DiseaseAttention",
    "LayerRelevance",
    "RandomAffine",
    "RandomDihedral",
    "RandomExposure",
    "SelfAttention",
    "SimilarityAlign",
    "SimilaritySampler",
    "dihedral_views",
    "film_input",
    "scheduled_tau",
]
