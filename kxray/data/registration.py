"""Classical registration of chest films: the template of many films, and how each film lies against it.

The template is the mean of films that are registered to it, again and again, from a first film that
resembles many (groupwise registration after Joshi et al., 2004, with similarities in place of
diffeomorphisms). One film is compared with a bank of turned, scaled and shifted copies of the template, and
from the best of these registered by SimpleITK (Lowekamp et al., 2013) at two resolutions, by mutual
information (Mattes et al., 2003).
"""

import concurrent.futures
import dataclasses
import functools

import numpy as np

from kxray.data.pose_search import Bank, Refiner, quiet
from kxray.data.regions import template_regions
from kxray.data.similarity import Similarity
from kxray.io.files import read_npz, replacing
from kxray.io.parallel import available_cores

__all__ = ["Template", "build_template", "confidence", "normalised", "register", "template_regions"]
__all__ += ["blur_matrix", "turned_scores"]

MAX_SIDE = 128
MIN_SIDE = 32
# Share of the frame's side over which brightness is evened out: about the width of a lung.
CONTRAST_WIDTH = 0.10
_STEEPEST = 2.5


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """What upright chest films have in common.

    Attributes:
        pixels: float32 (s, s) in [0, 1], the mean film, for the eye.
        contrast: float32 (s, s), mean of the films' `normalised` pixels; films are compared with it.
        poses: float32 (N, 4), how each film that it was made of lies: rotation in radians, log scale, shift
            right and down in shares of the width. Their mean (of the films in use) is the identity.
        scores: float32 (N,) in [-1, 1], how well each agrees with it.
        used: bool (N,), whether the film agrees well enough to be part of the mean.
        threshold: films that score less are no upright chests. Four in five of the template's own films do
            when they are turned upside down or on their side, unless more than 3% would as they are.
    """

    pixels: np.ndarray
    contrast: np.ndarray
    poses: np.ndarray
    scores: np.ndarray
    used: np.ndarray
    threshold: float

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.pixels.shape[0]

    @functools.cached_property
    def bank(self) -> Bank:
        """Its copies in many poses, made once."""
        return Bank(self.contrast)

    def save(self, path) -> None:
        """Writes an .npz, whole or not at all."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote. Raises ValueError where it is not that."""
        arrays = read_npz(path, [field.name for field in dataclasses.fields(cls)], "template")
        side, films = arrays["pixels"].shape[:1], arrays["scores"].shape[:1]
        shapes = {"pixels": side * 2, "contrast": side * 2, "poses": (*films, 4), "scores": films}
        shapes |= {"used": films, "threshold": ()}
        for name, shape in shapes.items():
            found = arrays[name]
            if found.shape != shape or 0 in shape or found.dtype.kind not in "fbiu":
                raise ValueError(
                    f"{path}: not a readable template ({name} of shape {found.shape}); make it again"
                )
        arrays["threshold"] = float(arrays["threshold"])
        return cls(**arrays)


def blur_matrix(size, width=CONTRAST_WIDTH) -> np.ndarray:
    """float32 (size, size): a Gaussian of standard deviation `width` * size along one side, rows sum to 1."""
    steps = np.arange(size)
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None]) / (width * size)) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def normalised(films) -> np.ndarray:
    """Films with exposure, window and slow changes of brightness taken out.

    Each pixel less the mean around it, over the standard deviation around it (no less than a third of the
    film's own), softly bounded. A film of another exposure, a * film + b
    with a > 0, gives the same.

    Args:
        films: float32 (N, s, s) in [0, 1].

    Returns:
        float32 (N, s, s) in [-2.5, 2.5], about 0 in the mean; below 0.01 everywhere for a constant film.
    """
    blur = blur_matrix(films.shape[-1])

    def around(values):
        return blur @ values @ blur.T

    middle = films - around(films)
    variance = around(middle * middle)
    floor = variance.mean(axis=(1, 2), keepdims=True) / 9 + 1e-7
    return _STEEPEST * np.tanh(middle / np.sqrt(np.maximum(variance, floor)) / _STEEPEST)


def build_template(films, *, rounds=4, seed=0, progress=None, workers=None) -> Template:
    """Groupwise registration by similarities.

    Args:
        films: float32 (N, s, s) in [0, 1], s from 32 to 128; mostly upright chests, rotated by up to 20
            degrees, scaled 0.8 to 1.25 and shifted by up to a tenth. Some that are something else do no harm.
        rounds: how often films are registered and averaged again.
        seed: of the first film's choice.
        progress: called with the number of registrations done and how many there will be.
        workers: threads; one a core by default.

    Returns:
        Template.

    Raises:
        ValueError: films of another shape or range, fewer than 2, or films that have nothing in common.
    """
    films = _checked(films)
    if len(films) < 2:
        raise ValueError(f"a template is made of 2 films and more, got {len(films)}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    contrasts = normalised(films)
    tell = _Teller(progress, rounds * len(films))
    pattern = _first_pattern(contrasts, np.random.default_rng(seed))
    used = None
    for step in range(rounds):
        # A blurred mean of badly placed films needs no fine registration.
        fine = step > 0
        poses, scores = _register(contrasts, pattern, Bank(pattern), fine, workers, tell.film)
        used = scores >= _outlying(scores)
        if used.sum() < 2:
            raise ValueError(f"the {len(films)} films have nothing in common; are they chests?")
        poses = _centred(poses, used)
        pattern = _mean(contrasts, poses, used)
    pixels = _mean(_exposed(films), poses, used)
    low, high = np.quantile(pixels, [0.005, 0.995])
    pixels = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    # How alike a chest is to what is none: to itself upside down and on its side.
    turned = _turned(contrasts[used], Bank(pattern))[:, 1:].max(axis=1)
    threshold = min(np.quantile(turned, 0.8), np.quantile(scores[used], 0.03))
    return Template(pixels, pattern, poses, scores, used, float(max(threshold, _outlying(scores))))


def register(films, template, *, progress=None, workers=None):
    """Finds how films lie against a template.

    Args:
        films: float32 (N, s, s) in [0, 1] with the template's s, each stretched to that square.
        template: Template.
        progress: called with the number of films done and how many there are.
        workers: threads; one a core by default.

    Returns:
        (poses, scores): float32 (N, 4), see `Template`, and the normalised cross-correlation of each aligned
        film with the template, float32 (N,) in [-1, 1]; 0 with the identity for a constant film.

    Raises:
        ValueError: films of another shape or range.
    """
    films = _checked(films)
    if films.shape[1:] != template.pixels.shape:
        raise ValueError(f"the template takes films of {template.pixels.shape}, got {films.shape[1:]}")
    tell = _Teller(progress, len(films))
    return _register(normalised(films), template.contrast, template.bank, True, workers, tell.film)


def turned_scores(films, template) -> np.ndarray:
    """How well films agree with the template at a coarse look: as they are, and turned.

    Args:
        films, template: as in `register`.

    Returns:
        float32 (N, 4): the best correlation of the film turned by 0, 90, 180 and 270 degrees. An upright
        chest has its largest value first.
    """
    return _turned(normalised(_checked(films)), template.bank)


def confidence(scores, template) -> np.ndarray:
    """Scores as a confidence in [0, 1]: 0.5 at the template's threshold, 1 at its films' median and above."""
    usual = float(np.median(template.scores[template.used]))
    steps = [0.0, template.threshold, max(usual, template.threshold + 1e-3)]
    return np.interp(scores, steps, [0.0, 0.5, 1.0]).astype(np.float32)


class _Teller:
    def __init__(self, progress, total):
        self.progress, self.total, self.done = progress, total, 0

    def film(self):
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def _checked(films):
    films = np.asarray(films)
    if films.ndim != 3 or films.shape[1] != films.shape[2] or not MIN_SIDE <= films.shape[1] <= MAX_SIDE:
        raise ValueError(
            f"expected square films (N, s, s) with s from {MIN_SIDE} to {MAX_SIDE}, got {films.shape}"
        )
    if films.dtype.kind != "f" or not (films.size == 0 or (films.min() >= -1e-5 and films.max() <= 1 + 1e-5)):
        raise ValueError(
            f"expected float films in [0, 1], got {films.dtype}; read films with kxray.read_image()"
        )
    return films.astype(np.float32, copy=False)


def _exposed(films):
    """Films stretched from their darkest to their brightest hundredth."""
    low, high = np.quantile(films, [0.01, 0.99], axis=(1, 2), keepdims=True)
    return np.clip((films - low) / np.maximum(high - low, 1e-3), 0, 1).astype(np.float32)


def _outlying(scores):
    """Films of one kind spread about their middle; what lies far below is of another kind."""
    middle = np.median(scores)
    spread = 1.4826 * np.median(np.abs(scores - middle))
    return max(middle - 3.5 * max(spread, 0.02), 0.4 * middle, 0.05)


def _centred(poses, used):
    """Poses against a template that is itself moved so that their mean is the identity.

    A point p of the new template is the point `back`(p) of the old.
    """
    back = Similarity.from_pose(poses[used].astype(np.float64).mean(axis=0)).inverse()
    return np.stack([back.then(Similarity.from_pose(pose)).pose for pose in poses])


def _mean(films, poses, used):
    """Mean of aligned films, each where it reaches."""
    total = np.zeros(films.shape[1:], np.float64)
    weight = np.full(films.shape[1:], 1e-3)
    whole = np.ones(films.shape[1:], np.float32)
    for k in np.flatnonzero(used):
        pose = Similarity.from_pose(poses[k])
        total += pose.warp(films[k])
        weight += pose.warp(whole)
    return (total / weight).astype(np.float32)


def _turned(contrasts, bank):
    turned = [bank.scores(np.rot90(contrasts, turns, axes=(1, 2))).max(axis=1) for turns in range(4)]
    return np.stack(turned, axis=1)


def _first_pattern(contrasts, generator):
    """The one of a few films that most films resemble in some pose."""
    some = generator.permutation(len(contrasts))
    judges, candidates = contrasts[some[:60]], some[:8]
    resemblance = [np.median(Bank(contrasts[k]).scores(judges).max(axis=1)) for k in candidates]
    return contrasts[candidates[int(np.argmax(resemblance))]]


def _register(contrasts, pattern, bank, fine, workers, tell):
    if not fine:
        found = bank.scores(contrasts)
        best = found.argmax(axis=1)
        for _ in contrasts:
            tell()
        return bank.poses[best], found.max(axis=1)
    poses, scores = np.zeros((len(contrasts), 4), np.float32), np.zeros(len(contrasts), np.float32)
    refine = Refiner(pattern)

    def one(k):
        if np.ptp(contrasts[k]) < 0.02:
            return poses[k], 0.0
        found = [refine(contrasts[k], start) for start in bank.starts(contrasts[k])]
        return max(found, key=lambda pair: pair[1])

    with quiet(), concurrent.futures.ThreadPoolExecutor(workers or available_cores()) as executor:
        for k, (pose, score) in enumerate(executor.map(one, range(len(contrasts)))):
            poses[k], scores[k] = pose, score
            tell()
    return poses, scores
