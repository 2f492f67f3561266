"""The aligner while it is trained: what it is asked, and what it is told it got wrong."""

import keras
from keras import ops

from kxray.layers.similarity_align import carry, compose, invert
from training.aligning.moved_films import VIEWS

# The corners of a chest, where a wrong pose is felt: shares of the width of the template's frame.
CORNERS = ((-0.3, -0.3), (0.3, -0.3), (0.3, 0.3), (-0.3, 0.3))
# A displacement of so many shares of the width counts linearly, a smaller one quadratically.
_KNEE = 0.01


class AlignerTrainer(keras.Model):
    """Trains a `SimilarityAlign` layer on the batches of `training.aligning.moved_films`.

    The loss is the sum of: the mean displacement of the chest's corners by the pose of every pass, against
    the pose that registration and the known motion give (in shares of the width, times 10); the same between
    the two views of a film, whose relative motion is known exactly; 1 - correlation of the aligned copy with
    the template, times `agreement`; and the cross-entropy of chest or no chest.

    Args:
        align: `kxray.layers.SimilarityAlign`, built.
        agreement: weight of the correlation with the template.
    """

    def __init__(self, align, agreement=0.1, **kwargs):
        super().__init__(**kwargs)
        self.align = align
        self.agreement = agreement

    def build(self, input_shape):
        if not self.align.built:
            self.align.build(input_shape)
        self.built = True

    def call(self, pictures):
        """Pictures (N, size, size, 1) -> (N, 4 * steps + 2): the poses of all passes, logit, correlation."""
        poses, logit, correlation = self.align.look(pictures)
        return ops.concatenate([*poses, logit[:, None], correlation[:, None]], axis=-1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        steps = self.align.steps
        # The first half of a batch is chests, film by film in VIEWS poses.
        chests = x.shape[0] // 2 if x.shape[0] else ops.shape(x)[0] // 2
        target, motion, is_chest = y[:chests, :4], y[:chests, 4:8], y[:, 8]
        poses = [y_pred[:chests, 4 * step : 4 * step + 4] for step in range(steps)]
        logit, correlation = y_pred[:, 4 * steps], y_pred[:chests, 4 * steps + 1]
        loss = sum(ops.mean(displacement(pose, target)) for pose in poses)
        at_rest = compose(poses[-1], invert(motion))
        films = chests // VIEWS
        loss = loss + ops.mean(displacement(at_rest[:films], at_rest[films:]))
        crossed = ops.softplus(logit) - is_chest * logit
        return 10.0 * loss + self.agreement * ops.mean(1.0 - correlation) + ops.mean(crossed)


def displacement(pose, other):
    """Mean distance (N,) of the chest's corners in two poses (N, 4), linear from 1% of the width on."""
    corners = ops.convert_to_tensor(CORNERS, "float32")
    apart = carry(pose, corners) - carry(other, corners)
    squared = ops.sum(ops.square(apart), axis=-1)
    return ops.mean(ops.sqrt(squared + _KNEE**2) - _KNEE, axis=-1)
