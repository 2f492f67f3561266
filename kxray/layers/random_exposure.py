"""Random exposure of a film: brightness, contrast, and how sharp it is."""

import keras
from keras import ops

_RADIUS = 3


@keras.saving.register_keras_serializable("kxray")
class RandomExposure(keras.layers.Layer):
    """Mild changes of intensity and blur, as between two machines or two kilovoltages.

    Args:
        brightness: largest shift either way, as a fraction of the full range.
        contrast: largest change of contrast about the film's mean either way, as a fraction.
        blur: largest standard deviation of a Gaussian blur, in network-input pixels; drawn from 0 up, so half
            of the films are blurred by less than half of it.
        seed: seed of the draws made when `call` is given none.

    Call arguments:
        images: float tensor (N, H, W, C) in [0, 1].
        draws: float tensor (N, 3) in [0, 1), one row a film, or None to draw here.
        training: with False the images come back untouched.

    Returns:
        Tensor of the shape and dtype of `images`, in [0, 1].
    """

    num_draws = 3

    def __init__(self, brightness=0.08, contrast=0.2, blur=0.8, seed=None, **kwargs):
        super().__init__(**kwargs)
        if min(brightness, contrast, blur) < 0 or contrast >= 1:
            raise ValueError(
                "brightness and blur must be 0 or more and contrast in [0, 1), "
                f"got {brightness}, {blur} and {contrast}"
            )
        self.brightness = brightness
        self.contrast = contrast
        self.blur = blur
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def move_boxes(self, boxes, draws, height, width):
        """Boxes (N, K, 4) as they are: nothing is moved. See `RandomAffine.move_boxes`."""
        return boxes

    def call(self, images, draws=None, training=True):
        if not training:
            return images
        if draws is None:
            draws = keras.random.uniform((ops.shape(images)[0], self.num_draws), seed=self.seed_generator)
        draws = ops.cast(ops.reshape(draws, (-1, self.num_draws, 1, 1, 1)), images.dtype)
        if self.blur:
            images = self._blurred(images, draws[:, 2] * self.blur)
        mean = ops.mean(images, axis=(1, 2), keepdims=True)
        gain = 1.0 + (2.0 * draws[:, 1] - 1.0) * self.contrast
        shift = (2.0 * draws[:, 0] - 1.0) * self.brightness
        return ops.clip(mean + gain * (images - mean) + shift, 0.0, 1.0)

    def _blurred(self, images, sigma):
        """Gaussian blur of each film by its own sigma (N, 1, 1, 1), along rows and then columns."""
        # A sigma of 0 would divide by zero; at a thousandth of a pixel the neighbours weigh nothing.
        sigma = ops.maximum(sigma, 1e-3)
        weights = [ops.exp(-0.5 * ops.square(step / sigma)) for step in range(_RADIUS + 1)]
        total = weights[0] + 2.0 * sum(weights[1:])
        height, width = images.shape[1:3]
        for axis, length in ((1, height), (2, width)):
            margin = [(0, 0)] * 4
            margin[axis] = (_RADIUS, _RADIUS)
            padded = ops.pad(images, margin, mode="symmetric")
            images = sum(
                weights[abs(step)] / total * _part(padded, axis, _RADIUS + step, length)
                for step in range(-_RADIUS, _RADIUS + 1)
            )
        return images

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        fields = {name: getattr(self, name) for name in ("brightness", "contrast", "blur", "seed")}
        return {**super().get_config(), **fields}


def _part(images, axis, start, length):
    return images[:, start : start + length] if axis == 1 else images[:, :, start : start + length]
