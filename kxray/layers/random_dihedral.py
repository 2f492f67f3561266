"""The eight mirror images and quarter turns of a square film, drawn at random, without resampling."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kxray")
class RandomDihedral(keras.layers.Layer):
    """Flips left-right, up-down and transposes, each with probability one half: exact pixel moves.

    For films without an up and a left (patches of a product, not of a patient). Films that are not square
    are flipped only.

    Args:
        seed: seed of the draws made when `call` is given none.

    Call arguments:
        images: float tensor (N, H, W, C).
        draws: float tensor (N, 3) in [0, 1), one row a film, or None to draw here.
        training: with False the images come back untouched.

    Returns:
        Tensor of the shape and dtype of `images`.
    """

    num_draws = 3

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def move_boxes(self, boxes, draws, height, width):
        """Where boxes (N, K, 4) are after `call` with these draws; see `RandomAffine.move_boxes`."""
        chosen = ops.reshape(draws < 0.5, (-1, self.num_draws, 1))
        x, y, across, down = (ops.cast(boxes[..., index], "float32") for index in range(4))
        x = ops.where(chosen[:, 0], 1 - x - across, x)
        y = ops.where(chosen[:, 1], 1 - y - down, y)
        if height != width:
            return ops.stack([x, y, across, down], axis=-1)
        turned = chosen[:, 2, :, None]
        return ops.where(turned, ops.stack([y, x, down, across], -1), ops.stack([x, y, across, down], -1))

    def call(self, images, draws=None, training=True):
        if not training:
            return images
        if draws is None:
            draws = keras.random.uniform((ops.shape(images)[0], self.num_draws), seed=self.seed_generator)
        chosen = ops.reshape(draws < 0.5, (-1, self.num_draws, 1, 1, 1))
        images = ops.where(chosen[:, 0], ops.flip(images, axis=2), images)
        images = ops.where(chosen[:, 1], ops.flip(images, axis=1), images)
        if images.shape[1] == images.shape[2]:
            images = ops.where(chosen[:, 2], ops.transpose(images, (0, 2, 1, 3)), images)
        return images

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


def dihedral_views(images, horizontal_only=False):
    """Every view that `RandomDihedral` can draw: a list of 8 tensors (N, H, W, C), the first untouched.

    4 where films are not square; 2, the film and its mirror image, with `horizontal_only`.
    """
    if horizontal_only:
        return [images, ops.flip(images, axis=2)]
    views = [images, ops.flip(images, axis=2), ops.flip(images, axis=1), ops.flip(images, axis=(1, 2))]
    if images.shape[1] == images.shape[2]:
        views += [ops.transpose(view, (0, 2, 1, 3)) for view in views]
    return views
