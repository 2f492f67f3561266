"""Finds how the chest lies on a film and brings the film to the template's frame, inside the graph."""

import keras
from keras import ops

from kxray.layers.similarity_sampler import sample

# What one pass can turn, scale (log) and shift at most.
_REACH = (0.8, 0.6, 0.4, 0.4)
_STEEPNESS = 20.0
_CHANNELS = (1, 2, 3, 4)


@keras.saving.register_keras_serializable("kxray")
class SimilarityAlign(keras.layers.Layer):
    """A spatial transformer (Jaderberg et al., 2015) that knows similarities and says whether it saw a chest.

    A localisation network looks at a small copy of the film, predicts how the chest lies on it, looks again
    at the copy aligned by that, and refines: the recurrence of inverse compositional spatial transformers
    (Lin and Lucey, 2017). The film itself is resampled once, by the last pose. The copy is brought to one
    contrast first, so that exposure says nothing.

    `confidence` is the smaller of two numbers: what the network learned to tell frontal chests from all else,
    and how well the aligned copy agrees with the template (normalised cross-correlation). From 0.5 on the
    film is a chest that could be aligned. An untrained layer returns the film as it is.

    Args:
        size: side of the copy in pixels, a multiple of 16, at least 32.
        width: filters of the first convolution; the others have 2, 3 and 4 times as many.
        steps: looks at the film.
        fill_value: what lies outside of the film.

    Call arguments:
        film: float (N, H, W, 1) in [0, 1], H and W known. Of a film that is much higher than wide the copy
            shows the middle.

    Returns:
        {"aligned": float32 (N, H, W, 1), "pose": float32 (N, 4) as in `SimilaritySampler`,
        "confidence": float32 (N,) in [0, 1]}.

    Raises:
        ValueError: an impossible size, width or number of steps, or films that are no (N, H, W, 1).
    """

    def __init__(self, size=64, width=16, steps=2, fill_value=0.0, **kwargs):
        # Half a pixel of a large film is less than half precision can tell.
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        if size < 32 or size % 16:
            raise ValueError(f"size must be a multiple of 16 pixels and at least 32, got {size}")
        if width < 1 or steps < 1:
            raise ValueError(f"width and steps must be at least 1, got {width} and {steps}")
        self.size = int(size)
        self.width = int(width)
        self.steps = int(steps)
        self.fill_value = fill_value
        convolution = {"strides": 2, "padding": "same", "activation": "relu", "dtype": "float32"}
        self.convolutions = [
            keras.layers.Conv2D(
                times * width, 5 if stage == 0 else 3, name=f"stage{stage + 1}", **convolution
            )
            for stage, times in enumerate(_CHANNELS)
        ]
        self.flatten = keras.layers.Flatten(dtype="float32", name="flatten")
        self.hidden = keras.layers.Dense(8 * width, activation="relu", dtype="float32", name="hidden")
        self.motion = keras.layers.Dense(4, kernel_initializer="zeros", dtype="float32", name="motion")
        self.judge = keras.layers.Dense(2 * width, activation="relu", dtype="float32", name="judge")
        self.chest = keras.layers.Dense(1, kernel_initializer="zeros", dtype="float32", name="chest")

    def build(self, input_shape):
        if len(input_shape) != 4 or input_shape[-1] != 1 or None in tuple(input_shape[1:3]):
            raise ValueError(f"expected films (N, H, W, 1) of known size, got {tuple(input_shape)}")
        self.template = self.add_weight(
            (self.size, self.size), initializer="zeros", trainable=False, name="template"
        )
        # Chest logit and correlation at which a film is just accepted.
        self.limits = self.add_weight((2,), initializer="zeros", trainable=False, name="limits")
        shape = (None, self.size, self.size, 4)
        for layer in self.convolutions:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        features = shape[1] * shape[2] * shape[3]
        self.flatten.build(shape)
        for layer, inputs in (
            (self.hidden, features),
            (self.motion, 8 * self.width),
            (self.judge, features),
            (self.chest, 2 * self.width),
        ):
            layer.build((None, inputs))

    def call(self, film):
        film = ops.cast(film, "float32")
        pose, confidence = self.localise(film)
        return {
            "aligned": sample(film, pose, fill_value=self.fill_value),
            "pose": pose,
            "confidence": confidence,
        }

    def localise(self, film):
        """(poses float32 (N, 4), confidences float32 (N,)) of films (N, H, W, 1), which stay as they are."""
        poses, logit, correlation = self.look(self.small_copy(film))
        learned = ops.sigmoid(logit - self.limits[0])
        agreeing = ops.sigmoid(_STEEPNESS * (correlation - self.limits[1]))
        return poses[-1], ops.minimum(learned, agreeing)

    def small_copy(self, film):
        """The copy (N, size, size, 1) that is looked at."""
        return small_copy(film, self.size)

    def look(self, copy):
        """What the passes see on copies (N, size, size, 1).

        Returns:
            (list of poses (N, 4), one a pass; chest logits (N,); correlations (N,) in [-1, 1] of the copies
            in their last pose with the template).
        """
        seen = contrast_normalised(copy)
        seen = ops.concatenate([seen, ops.ones_like(copy)], axis=-1)
        template = contrast_normalised(self.template[None, :, :, None])[..., 1:]
        beside = ops.zeros_like(copy) + template
        pose = ops.zeros((ops.shape(copy)[0], 4), "float32")
        poses, shown = [], seen
        for step in range(self.steps):
            if step:
                shown = sample(seen, ops.stop_gradient(pose))
            x = ops.concatenate([shown, beside], axis=-1)
            for convolution in self.convolutions:
                x = convolution(x)
            x = self.flatten(x)
            reach = ops.convert_to_tensor(_REACH, "float32")
            pose = compose(reach * ops.tanh(self.motion(self.hidden(x)) / reach), pose)
            poses.append(pose)
        logit = self.chest(self.judge(x))[:, 0]
        return poses, logit, _correlation(sample(seen[..., 1:], pose), template)

    def compute_output_shape(self, input_shape):
        count = input_shape[0]
        return {"aligned": tuple(input_shape), "pose": (count, 4), "confidence": (count,)}

    def get_config(self):
        fields = {name: getattr(self, name) for name in ("size", "width", "steps", "fill_value")}
        return {**super().get_config(), **fields}


def small_copy(film, size):
    """Films (N, H, W, 1) -> copies (N, size, size, 1), antialiased, of the film's width about its middle.

    A film that is not square is padded with 0 or loses its ends, so that shares of the width stay what they
    are.
    """
    film = ops.cast(film, "float32")
    height, width = film.shape[1:3]
    # An even difference keeps the middle where it is.
    rows = max(2, size - 2 * round((size - size * height / width) / 2))
    if (height, width) != (rows, size):
        film = ops.image.resize(film, (rows, size), interpolation="bilinear", antialias=True)
    margin = (size - rows) // 2
    if margin >= 0:
        return ops.pad(film, [(0, 0), (margin, margin), (0, 0), (0, 0)]) if margin else film
    return film[:, -margin : -margin + size]


def compose(first, second):
    """The pose (N, 4) of the similarity that applies `first` and then `second`, both (N, 4)."""
    angle, scale = second[:, 0:1], ops.exp(second[:, 1:2])
    cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
    x, y = first[:, 2:3], first[:, 3:4]
    shift = ops.concatenate([cos * x + sin * y, cos * y - sin * x], axis=-1) + second[:, 2:]
    return ops.concatenate([first[:, :2] + second[:, :2], shift], axis=-1)


def invert(pose):
    """The poses (N, 4) that undo `pose` (N, 4)."""
    angle, scale = -pose[:, 0:1], ops.exp(-pose[:, 1:2])
    cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
    x, y = -pose[:, 2:3], -pose[:, 3:4]
    return ops.concatenate([-pose[:, :2], cos * x + sin * y, cos * y - sin * x], axis=-1)


def carry(pose, points):
    """Where aligned points (K, 2), in shares of the width, lie on films in `pose` (N, 4): (N, K, 2)."""
    angle, scale = pose[:, 0:1], ops.exp(pose[:, 1:2])
    cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
    x, y = points[None, :, 0], points[None, :, 1]
    moved = ops.stack([cos * x + sin * y, cos * y - sin * x], axis=-1)
    return moved + pose[:, None, 2:]


def contrast_normalised(copy):
    """Films (N, s, s, 1) without their exposure: (N, s, s, 2).

    The first channel is (film - its mean) / its deviation, the second the same against the mean and deviation
    of each pixel's surroundings, a quarter of the film wide; both cut off at 3. A film of one grey gives 0.
    """
    mean = ops.mean(copy, axis=(1, 2), keepdims=True)
    centred = copy - mean
    deviation = ops.sqrt(ops.mean(ops.square(centred), axis=(1, 2), keepdims=True) + 1e-6)
    side = copy.shape[1]
    moments = ops.average_pool(ops.concatenate([centred, ops.square(centred)], axis=-1), 4, 4)
    moments = ops.average_pool(moments, side // 16 + 1, 1, padding="same")
    moments = ops.image.resize(moments, (side, side), interpolation="bilinear")
    local = ops.maximum(moments[..., 1:] - ops.square(moments[..., :1]), 0.0)
    near = (centred - moments[..., :1]) / ops.sqrt(local + ops.square(0.1 * deviation) + 1e-6)
    return ops.clip(ops.concatenate([centred / deviation, near], axis=-1), -3.0, 3.0)


def _correlation(shown, template):
    """Normalised cross-correlation (N,) of films (N, s, s, 2) with the template (1, s, s, 1).

    The films' first channel is compared, where their second, the film's extent, is not 0; the middle weighs
    more than the corners.
    """
    side = template.shape[1]
    across = (ops.arange(side, dtype="float32") + 0.5) / side - 0.5
    weight = ops.exp(-0.5 * (ops.square(across)[None, :] + ops.square(across)[:, None]) / 0.35**2)
    weight = weight[None, :, :, None] * shown[..., 1:]
    total = ops.sum(weight, axis=(1, 2, 3), keepdims=True) + 1e-6
    a, b = shown[..., :1], template

    def mean(values):
        return ops.sum(weight * values, axis=(1, 2, 3), keepdims=True) / total

    a, b = a - mean(a), b - mean(b)
    both = mean(a * b) / ops.sqrt(mean(a * a) * mean(b * b) + 1e-6)
    return both[:, 0, 0, 0]
