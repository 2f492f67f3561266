"""Random rotation, shift, shear, zoom and left-right flip in a single resampling."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("kxray")
class RandomAffine(keras.layers.Layer):
    """The augmentation of the view classifier, with all its motions in one interpolation.

    Chaining Keras's `RandomRotation`, `RandomTranslation`, `RandomShear`, `RandomZoom` and `RandomFlip`
    blurs a film five times and costs five passes over it; their product is one affine map.

    Args:
        rotation: largest rotation either way, in degrees.
        width_shift, height_shift: largest shift either way, as a fraction of width and height.
        shear: largest horizontal shear angle either way, in degrees.
        zoom: largest change of scale either way, as a fraction (0.2 draws scales in [0.8, 1.2]).
        horizontal_flip: whether half of the films are mirrored left to right.
        fill_value: what lies outside the film, in [0, 1].
        seed: seed of the draws made when `call` is given none.

    Call arguments:
        images: float tensor (N, H, W, C).
        draws: float tensor (N, 6) in [0, 1), one row a film, or None to draw here. Giving them makes the
            result a function of its arguments, which is how an interrupted training run is resumed exactly.
        training: with False the images come back untouched.

    Returns:
        Tensor of the shape and dtype of `images`.
    """

    num_draws = 6

    def __init__(
        self,
        rotation=45.0,
        width_shift=0.1,
        height_shift=0.1,
        shear=10.0,
        zoom=0.2,
        horizontal_flip=True,
        fill_value=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= zoom < 1:
            raise ValueError(f"zoom must be in [0, 1), got {zoom}")
        if not 0 <= shear < 90:
            raise ValueError(f"shear must be in [0, 90) degrees, got {shear}")
        self.rotation = rotation
        self.width_shift = width_shift
        self.height_shift = height_shift
        self.shear = shear
        self.zoom = zoom
        self.horizontal_flip = horizontal_flip
        self.fill_value = fill_value
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def transforms(self, draws, height, width):
        """The (N, 8) projective rows that map output pixels (x, y) to input pixels, about the centre."""
        draws = ops.cast(draws, "float32")
        signed = 2.0 * draws[:, :5] - 1.0
        angle = signed[:, 0] * math.radians(self.rotation)
        shift_x = signed[:, 1] * self.width_shift * width
        shift_y = signed[:, 2] * self.height_shift * height
        shear = ops.tan(signed[:, 3] * math.radians(self.shear))
        inverse_scale = 1.0 / (1.0 + signed[:, 4] * self.zoom)
        mirror = ops.where(draws[:, 5] < 0.5, -1.0, 1.0) if self.horizontal_flip else ops.ones_like(angle)
        cos, sin = ops.cos(angle), ops.sin(angle)
        a = inverse_scale * mirror * cos
        b = inverse_scale * mirror * (shear * cos - sin)
        d = inverse_scale * sin
        e = inverse_scale * (shear * sin + cos)
        centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
        c = centre_x + shift_x - a * centre_x - b * centre_y
        f = centre_y + shift_y - d * centre_x - e * centre_y
        zero = ops.zeros_like(a)
        return ops.stack([a, b, c, d, e, f, zero, zero], axis=1)

    def move_boxes(self, boxes, draws, height, width):
        """Where boxes are after `call` with these draws: the smallest upright box around each moved one.

        Args:
            boxes: float (N, K, 4): x, y (upper left), width, height in shares of the film's sides; NaN for
                none, which stays none.
            draws: float (N, 6), as for `call`.
            height, width: of the films in pixels.

        Returns:
            float32 (N, K, 4); not cut off at the film's edges.
        """
        rows = self.transforms(draws, height, width)
        a, b, c, d, e, f = (rows[:, index, None, None] for index in range(6))
        boxes = ops.cast(boxes, "float32")
        left, top = boxes[..., 0], boxes[..., 1]
        right, bottom = left + boxes[..., 2], top + boxes[..., 3]
        # Corners (N, K, 4) on the film as it was; the rows above lead there from the film as it becomes.
        x = ops.stack([left, right, right, left], axis=-1) * width - 0.5 - c
        y = ops.stack([top, top, bottom, bottom], axis=-1) * height - 0.5 - f
        area = a * e - b * d
        moved_x = ((e * x - b * y) / area + 0.5) / width
        moved_y = ((a * y - d * x) / area + 0.5) / height
        low_x, low_y = ops.min(moved_x, axis=-1), ops.min(moved_y, axis=-1)
        sides = (ops.max(moved_x, axis=-1) - low_x, ops.max(moved_y, axis=-1) - low_y)
        return ops.stack([low_x, low_y, *sides], axis=-1)

    def call(self, images, draws=None, training=True):
        if not training:
            return images
        height, width = images.shape[1:3]
        if draws is None:
            draws = keras.random.uniform((ops.shape(images)[0], self.num_draws), seed=self.seed_generator)
        return ops.image.affine_transform(
            images,
            self.transforms(draws, height, width),
            interpolation="bilinear",
            fill_mode="constant",
            fill_value=self.fill_value,
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        fields = "rotation width_shift height_shift shear zoom horizontal_flip fill_value seed".split()
        return {**super().get_config(), **{field: getattr(self, field) for field in fields}}
