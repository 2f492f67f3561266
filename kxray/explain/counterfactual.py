"""Counterfactual films: what would have to change in a film for the classifier to say something else.

found = kxray.explain.masked_residual(model, spec, films, "no Effusion")
found.films, found.counterfactuals, found.difference, found.before, found.after

Three makers give one type of result: a trained `counterfactual_gan` (`gan_counterfactuals`), the search for a
residual and a mask of one film (`masked_residual`), and a shift in an autoencoder's latent space
(`latent_shift`). A counterfactual says what the classifier listens to; it is no statement about the patient.
"""

import dataclasses

import numpy as np

from kxray.explain import targets as asked

# Traced functions that are kept for a model.
_REMEMBERED = 8


@dataclasses.dataclass(frozen=True)
class Counterfactuals:
    """N films and their counterfactuals.

    Attributes:
        films: float32 (N, h, w, 1) in [0, 1], x.
        counterfactuals: float32 (N, h, w, 1) in [0, 1], y.
        reference: float32 (N, h, w, 1), what y is to be compared with: x itself; of a latent shift the film
            as the autoencoder gives it back.
        masks: float32 (N, h, w, 1) in [0, 1], a: where the film was changed; ones where a method has none.
        maps: float32 (N, h, w), 0 and more: a |r|; of a latent shift see `latent_shift`.
        before, after: float (N, L), calibrated probabilities of x and y, in the order of `spec.labels`.
        targets: int32 (N,), what was asked for, see `kxray.explain.targets_of`.
        steps: more arrays, film first, that the method gives; None: none.
    """

    films: np.ndarray
    counterfactuals: np.ndarray
    reference: np.ndarray
    masks: np.ndarray
    maps: np.ndarray
    before: np.ndarray
    after: np.ndarray
    targets: np.ndarray
    steps: dict | None = None

    def __len__(self):
        return len(self.films)

    @property
    def difference(self) -> np.ndarray:
        """float32 (N, h, w, 1), signed: what was added (above 0) and what was taken away."""
        return self.counterfactuals - self.reference

    def along(self, t) -> np.ndarray:
        """The films on the straight way to the counterfactuals, reference + t (y - reference).

        Args:
            t: a number, 0 at the reference and 1 at the counterfactual; or K of them.

        Returns:
            float32 (N, h, w, 1), or (N, K, h, w, 1).
        """
        t = np.asarray(t, np.float32)
        if t.ndim == 0:
            return self.reference + t * self.difference
        return self.reference[:, None] + t[:, None, None, None] * self.difference[:, None]

    def reached(self, spec) -> np.ndarray:
        """Whether the classifier says of each counterfactual what was asked for, bool (N,)."""
        return asked.reached(spec, self.after, self.targets)

    def take(self, rows) -> "Counterfactuals":
        """Some of them: indices or bool (N,)."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        steps = arrays.pop("steps")
        if steps is not None:
            steps = {name: value[rows] for name, value in steps.items()}
        return Counterfactuals(**{name: value[rows] for name, value in arrays.items()}, steps=steps)


def check_asked(spec, films, targets) -> tuple[np.ndarray, np.ndarray]:
    """What all makers of counterfactuals ask of their input.

    Args:
        spec: kxray.ModelSpec of the classifier.
        films: float (N, h, w, 1) in [0, 1], the classifier's own input.
        targets: name or number of one target, or one a film.

    Returns:
        (films float32, targets int32 (N,))

    Raises:
        ValueError: an unknown target, films of another size or type, with NaN or outside [0, 1].
    """
    asked.targets_of(spec)
    films = np.asarray(films)
    height, width = spec.image_size
    if films.ndim != 4 or films.shape[1:] != (height, width, 1):
        raise ValueError(
            f"expected films (N, {height}, {width}, 1) as the classifier takes them, got {films.shape}; "
            "kxray.data.load_inputs() brings films to that size"
        )
    if films.dtype.kind != "f":
        raise ValueError(
            f"expected float pixels in [0, 1], got {films.dtype}; read films with kxray.read_image()"
        )
    if np.isnan(films).any():
        rows = np.flatnonzero(np.isnan(films).any(axis=(1, 2, 3)))
        raise ValueError(f"film {rows[0]} has NaN in it ({len(rows)} of {len(films)} films have)")
    if films.size and not (films.min() >= 0 and films.max() <= 1):
        raise ValueError(
            f"expected pixels in [0, 1], got {films.min():.4g} to {films.max():.4g}; read films with "
            "kxray.read_image()"
        )
    return films.astype(np.float32), asked.target_numbers(spec, targets, len(films))


def check_region(region, films) -> np.ndarray:
    """Where films may change, float32 (N, h, w, 1) in [0, 1].

    Args:
        region: float or bool (N, h, w, 1), or (h, w, 1) or (h, w) for all films; None: everywhere.
        films: (N, h, w, 1).
    """
    shape = films.shape
    if region is None:
        return np.ones(shape, np.float32)
    given = np.asarray(region)
    wide = given[..., None] if given.shape == shape[1:3] else given
    if wide.shape not in (shape, shape[1:]) or wide.dtype.kind not in "bfiu":
        raise ValueError(f"expected a region {shape}, {shape[1:]} or {shape[1:3]}, got {given.shape}")
    wide = wide.astype(np.float32)
    if not (np.isfinite(wide).all() and (not wide.size or (wide.min() >= 0 and wide.max() <= 1))):
        raise ValueError("expected a region of values in [0, 1]: where 0 is, nothing changes")
    return np.ascontiguousarray(np.broadcast_to(wide, shape))


def calibrated(logits, spec) -> np.ndarray:
    """Calibrated probabilities float (N, L) of pre-activation logits (N, units)."""
    from scipy.special import expit, softmax

    scaled = np.asarray(logits, float) / spec.temperature
    if spec.task == "multilabel":
        return expit(scaled)
    if scaled.shape[1] == 1:
        positive = expit(scaled[:, 0])
        return np.stack([1 - positive, positive], axis=1)
    return softmax(scaled, axis=1)


def traced(function, *shapes):
    """A tf.function of float32 tensors of films, N of whatever number, traced once.

    Args:
        function: of tensors.
        *shapes: of one row of each of them.
    """
    import tensorflow as tf

    return tf.function(function, input_signature=[tf.TensorSpec([None, *shape]) for shape in shapes])


def kept_with(model, key, make):
    """What `make` made for a model, made once: tracing a deep network takes longer than asking it.

    Args:
        model: keras.Model.
        key: everything that `make` depends on beside the model, hashable.
        make: function of nothing.
    """
    kept = model.__dict__.setdefault("_kxray_counterfactual", {})
    if key not in kept:
        if len(kept) >= _REMEMBERED:
            kept.clear()
        kept[key] = make()
    return kept[key]


def in_batches(function, arrays, batch_size) -> dict:
    """What a function of tensors, a dict of tensors by film, gives of arrays, batch by batch.

    Args:
        function: of as many tensors as there are arrays.
        arrays: N rows each, N at least 1.
        batch_size: rows at a time.
    """
    import tensorflow as tf

    count = len(arrays[0])
    if not count:
        raise ValueError("no film was given; give films (N, h, w, 1) of one film or more")
    parts = []
    for start in range(0, count, batch_size):
        made = function(*(tf.convert_to_tensor(array[start : start + batch_size]) for array in arrays))
        parts.append({name: value.numpy() for name, value in made.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def gan_counterfactuals(
    gan, model, spec, films, targets, *, region=None, batch_size=16, gan_targets=None
) -> Counterfactuals:
    """Counterfactuals by a trained `counterfactual_gan`.

    Args:
        gan: `kxray.models.build("counterfactual_gan", ...)`, as `kxray.load(RUN)` gives it.
        model, spec: the classifier that it was trained against.
        films: float (N, h, w, 1) in [0, 1].
        targets: name or number (of `kxray.explain.targets_of(spec)`) of one target, or one a film.
        region: float or bool (N, h, w, 1) or (h, w, 1), where films may change.
        batch_size: films at a time.
        gan_targets: names of the targets that the GAN was trained for, in its order; None: all of the
            classifier's.

    Returns:
        Counterfactuals; masks are a times `region`.

    Raises:
        ValueError: see `check_asked`; a GAN of another size, or that was not trained for a target.
    """
    from kxray.explain.head import with_logits

    films, numbers = check_asked(spec, films, targets)
    region = check_region(region, films)
    if tuple(spec.image_size) != (gan.side, gan.side):
        raise ValueError(
            f"the GAN changes films of {gan.side}x{gan.side} pixels, the classifier takes "
            f"{'x'.join(map(str, spec.image_size))}; give the classifier that it was trained against"
        )
    names = asked.target_names(spec)
    known = names if gan_targets is None else tuple(gan_targets)
    if len(known) != gan.num_targets:
        raise ValueError(
            f"the GAN was trained for {gan.num_targets} targets, got {len(known)}: {', '.join(known)}; "
            "give gan_targets, the labels of its spec"
        )
    missing = sorted({names[number] for number in numbers} - set(known))
    if missing:
        raise ValueError(f"the GAN was not trained for {missing[0]!r}; its targets are: {', '.join(known)}")
    own = np.array([known.index(names[number]) for number in numbers], np.int32)
    made = gan.change(films, own, region=region, batch_size=batch_size)

    def traced_logits():
        run = with_logits(model)
        return traced(lambda films: {"logits": run(films)[0]}, films.shape[1:])

    say = kept_with(model, "logits", traced_logits)
    before, after = (in_batches(say, (some,), batch_size)["logits"] for some in (films, made["film"]))
    return Counterfactuals(
        films=films,
        counterfactuals=made["film"],
        reference=films,
        masks=made["mask"],
        maps=(made["mask"] * np.abs(made["residual"]))[..., 0],
        before=calibrated(before, spec),
        after=calibrated(after, spec),
        targets=numbers,
    )
