"""Films in known poses and pictures that are no upright chest, drawn anew in every step, inside the graph."""

import dataclasses
import math

import numpy as np

# Chests that shall be aligned: radians, log scale, share of the width.
TURNED, SCALED, SHIFTED = math.radians(25), math.log(1.3), 0.12
# Of the films of a batch: each is shown in two poses.
VIEWS = 2
# What a batch asks: the pose to be found, the motion that was applied, and whether it is a chest.
TARGETS = 9
# A copy is this much larger than what is looked at, so that magnified chests are not blurred, and framed
# by so much of its mirror image, so that the film's edge does not tell how it was moved.
FINER, MARGIN = 4 / 3, 0.375


@dataclasses.dataclass(frozen=True)
class Copies:
    """What batches are drawn from.

    Args:
        films: float32 (N, s, s), upright or nearly so.
        poses: float32 (N, 4), how the chest lies on each, measured by registration with the template.
        foreign: float32 (M, s, s), pictures that are no frontal chest.
        size: side of the pictures in a batch.
    """

    films: np.ndarray
    poses: np.ndarray
    foreign: np.ndarray
    size: int


def copy_side(size) -> int:
    """The side of the copies that are moved."""
    return 2 * round(size * FINER / 2)


def batches(copies, rows, *, films, seed, first_step=0):
    """An endless dataset of (pictures float32 (4 films, s, s, 1), targets float32 (4 films, 9)).

    The first `films` pictures show films in one random pose and exposure, the next the same films in another;
    the last half is pictures that are to be refused. A step's draws depend on the seed and its number alone.

    Args:
        copies: Copies.
        rows: positions of the films that may be drawn.
        films: films a step.
        seed: integer >= 0.
        first_step: number of the first step.
    """
    import tensorflow as tf

    rows = tf.constant(np.asarray(rows), tf.int32)
    # Half precision holds 11 bits of grey, more than the noise of a film leaves.
    sources = tf.constant(_framed(copies.films), tf.float16)
    foreign = tf.constant(_framed(copies.foreign), tf.float16)
    poses = tf.constant(copies.poses, tf.float32)

    def draw(step):
        return _batch(step, seed, (sources, foreign, poses, rows), films, copies.size)

    steps = tf.data.Dataset.counter(first_step, dtype=tf.int64)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    return steps.map(draw, num_parallel_calls=2).prefetch(2).with_options(options)


def _framed(films):
    """Films (N, s, s) -> (N, t, t): framed by their mirror image."""
    margin = round(MARGIN * films.shape[1])
    return np.pad(films, [(0, 0), (margin, margin), (margin, margin)], mode="symmetric")


def _batch(step, seed, held, films, size):
    import tensorflow as tf

    from kxray.layers.similarity_align import compose

    sources, foreign, poses, rows = held
    draws = iter(range(1000))

    def uniform(shape, low=0.0, high=1.0):
        # Every call has its own stream; all of them are functions of (seed, step).
        mixed = tf.stack([tf.cast(seed, tf.int64) * 1000 + next(draws), step])
        return tf.random.stateless_uniform(shape, mixed, low, high)

    def pick(count, most):
        return tf.cast(uniform((count,)) * tf.cast(most, tf.float32), tf.int32)

    def signed(count, limits):
        return uniform((count, len(limits)), -1.0, 1.0) * tf.constant([limits])

    chests, half = VIEWS * films, films
    row = tf.gather(rows, pick(films, tf.shape(rows)[0]))
    row = tf.tile(row, [VIEWS])
    motion = signed(chests, (TURNED, SCALED, SHIFTED, SHIFTED))
    target = compose(tf.gather(poses, row), motion)
    shown = _moved(tf.gather(sources, row), motion, size, uniform)

    # Chests that are not to be aligned: turned far, upside down, too small or large, off it, inverted.
    other = tf.gather(rows, pick(half, tf.shape(rows)[0]))
    kind = pick(half, 6)
    far = signed(half, (TURNED, SCALED / 2, SHIFTED, SHIFTED))
    beyond = tf.sign(uniform((half,), -1.0, 1.0))
    quarter = beyond * uniform((half,), math.radians(70), math.pi)
    upside = math.pi + 0.7 * far[:, 0]
    turn = tf.where(kind == 0, quarter, tf.where(kind == 1, upside, far[:, 0]))
    zoom = tf.where(
        kind == 3, tf.where(beyond > 0, uniform((half,), 0.9, 1.3), uniform((half,), -1.4, -0.8)), far[:, 1]
    )
    away = uniform((half,), -math.pi, math.pi)
    off = tf.where(kind == 4, uniform((half,), 0.4, 0.6), 0.0)
    far = tf.stack([turn, zoom, far[:, 2] + off * tf.cos(away), far[:, 3] + off * tf.sin(away)], axis=1)
    lying = tf.cast(tf.gather(sources, other), tf.float32)
    lying = tf.where((kind == 2)[:, None, None], lying[:, ::-1], lying)
    lying = tf.where((kind == 5)[:, None, None], 1.0 - lying, lying)
    lying = _moved(lying, far, size, uniform)

    # Half of all foreign pictures come in any direction, the others as they are kept.
    wild = signed(half, (math.pi, 0.5, 0.15, 0.15)) * tf.round(uniform((half, 1)))
    strange = _moved(tf.gather(foreign, pick(half, tf.shape(foreign)[0])), wild, size, uniform)

    pictures = _exposed(tf.concat([shown, lying, strange], axis=0), uniform)
    none = tf.zeros((VIEWS * half, TARGETS))
    asked = tf.concat([target, motion, tf.ones((chests, 1))], axis=1)
    return pictures, tf.ensure_shape(tf.concat([asked, none], axis=0), (2 * chests, TARGETS))


def _moved(framed, motion, size, uniform):
    """Framed films (N, t, t) after a motion (N, 4): (N, size, size). A third loses its mirrored frame."""
    import tensorflow as tf

    from kxray.layers.similarity_align import invert
    from kxray.layers.similarity_sampler import sample

    side = framed.shape[1]
    inner = side / (1 + 2 * MARGIN)
    margin = (side - round(inner)) // 2
    inner = side - 2 * margin
    count = tf.shape(motion)[0]
    framed = tf.cast(framed, tf.float32)
    extent = np.pad(np.ones((inner, inner), np.float32), margin)[None]
    level = tf.where(uniform((count,)) < 0.5, 0.0, uniform((count,)))[:, None, None]
    bare = (uniform((count,)) < 1 / 3)[:, None, None]
    framed = tf.where(bare, framed * extent + level * (1 - extent), framed)
    # The frame of the larger picture is wider: its shares of the width are smaller.
    ratio = inner / side
    back = invert(motion)
    back = tf.concat([back[:, :1], back[:, 1:2] + math.log(ratio), back[:, 2:] * ratio], axis=1)
    return sample(framed[..., None], back, size=(size, size))[..., 0]


def _exposed(pictures, uniform):
    """Other exposures, blur, noise, and what lies upright however the patient does: (N, s, s, 1)."""
    import tensorflow as tf

    count, size = tf.shape(pictures)[0], pictures.shape[1]

    def each(low=0.0, high=1.0):
        return uniform((count,), low, high)[:, None, None]

    pictures = tf.clip_by_value(pictures, 0.0, 1.0)
    pictures = tf.pow(pictures + 1e-4, tf.exp(each(-0.7, 0.7)))
    blurred = tf.nn.avg_pool2d(pictures[..., None], 3, 1, "SAME")[..., 0]
    share = tf.maximum(0.0, each(-1.0, 1.0))
    pictures = pictures + share * (blurred - pictures)
    across = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    pictures *= 1 + each(-0.3, 0.3) * across[None, None, :] + each(-0.3, 0.3) * across[None, :, None]
    noise = uniform((count, size, size), -1.0, 1.0) * tf.maximum(0.0, each(-0.05, 0.05))
    pictures = each(0.35, 1.3) * (pictures + noise) + each(-0.2, 0.3)

    def inside(left, right, top, bottom):
        columns = (across[None, None, :] > left) & (across[None, None, :] < right)
        return columns & (across[None, :, None] > top) & (across[None, :, None] < bottom)

    # The collimator's blades, and two marks.
    opened = inside(
        *(side * (0.5 - tf.maximum(0.0, each(-0.16, 0.08))) for side in (-1, 1)),
        *(side * (0.5 - tf.maximum(0.0, each(-0.16, 0.08))) for side in (-1, 1)),
    )
    pictures = tf.where(opened, pictures, tf.where(each() < 0.8, 0.0, 1.0))
    for _ in range(2):
        x, y = each(-0.5, 0.5), each(-0.5, 0.5)
        marked = inside(x, x + each(-0.1, 0.12), y, y + each(-0.05, 0.06))
        pictures = tf.where(marked, tf.round(each()), pictures)
    return tf.clip_by_value(pictures, 0.0, 1.0)[..., None]
