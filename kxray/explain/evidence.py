"""The evidence that a model's logits are made of, brought back to the film, with a box around its peak."""

import keras
import tensorflow as tf

from kxray.explain.graph import chosen_unit
from kxray.explain.head import with_logits
from kxray.layers import evidence_map

# The region of a box holds all that reaches this share of the peak.
_BOX_SHARE = 0.5


def evidence(model):
    """Evidence: the signed map whose mean, plus a bias, is the logit, in the film's own frame.

    Of a model with `kxray.layers.DiseaseAttention` that is attention times projected features; of one with
    dense layers on averaged features its class activation map (Zhou et al., 2016, eq. 2). Where the model
    aligns the film first, the map is made in the aligned frame and brought back by the pose's inverse.

    Args:
        model: functional model of films of one size, such as `kxray.models.build("masked_densenet")`.

    Returns:
        Function (images (N, H, W, 1), target int32 (N,)) -> dict of float32 tensors: `heatmap` (N, H, W, 1)
        on the film, 0 where the aligned film does not reach; `evidence_aligned` (N, h, w) as the model made
        it; `pose` (N, 4): rotation in radians, log scale, shift right and down in widths; `confidence` (N,)
        of the alignment, below 0.5 where the film is no chest that could be aligned (without alignment the
        pose is 0 and the confidence 1); `box` (N, 4), see `peak_box`; and `logits` (N, L).

    Raises:
        ValueError: a model whose logits come from something else.
    """
    found = evidence_map.evidence_outputs(model)
    aligning = [found[name] for name in ("pose", "confidence") if name in found]
    run = with_logits(model, found["evidence_aligned"], *aligning)
    film_size = tuple(model.inputs[0].shape[1:3])

    def explain(images, target):
        logits, maps, *aligned = run(images)
        maps = tf.gather(maps, chosen_unit(logits, target)[:, None], axis=3, batch_dims=1)
        pose, confidence = aligned or (tf.zeros_like(logits[:, :1]) + tf.zeros(4), tf.ones_like(logits[:, 0]))
        heatmap = evidence_map.on_film(maps, pose if aligned else None, film_size)
        return {
            "heatmap": heatmap,
            "evidence_aligned": maps[..., 0],
            "pose": pose,
            "confidence": confidence,
            "box": peak_box(heatmap[..., 0]),
            "logits": logits,
        }

    return explain


def suits(model) -> bool:
    """Whether a model attends to diseases or aligns its films, which evidence knows how to read."""
    return evidence_map.attends_or_aligns(model)


def aligns_films(model) -> bool:
    """Whether a model begins with a `kxray.layers.SimilarityAlign`."""
    return evidence_map.alignment(model) is not None


def in_film_frame(model, explain, upsample=False):
    """Brings the maps of an explanation at feature resolution from the aligned frame back to the film's.

    Args:
        model: the model that is explained.
        explain: function (images, target) -> dict with `heatmap` (N, h, w, 1), perhaps `stage_maps`
            (N, S, h, w).
        upsample: whether the heatmap comes at the film's height and width.

    Returns:
        The function itself where the model does not align its films, else one like it.
    """
    alignment = evidence_map.alignment(model)
    if alignment is None:
        return explain
    # Of the aligner alone: the rest of the network has run for the explanation.
    find_pose = keras.Model(model.inputs, {"pose": alignment["pose"]})
    film_size = tuple(model.inputs[0].shape[1:3])

    def explain_on_film(images, target):
        results = dict(explain(images, target))
        pose = find_pose(images, training=False)["pose"]

        def bring(maps, size):
            return evidence_map.on_film(tf.cast(maps, tf.float32), pose, film_size, size)

        grid = results["heatmap"].shape[1:3]
        results["heatmap"] = bring(results["heatmap"], film_size if upsample else grid)
        if "stage_maps" in results:
            stages_last = tf.transpose(results["stage_maps"], [0, 2, 3, 1])
            results["stage_maps"] = tf.transpose(bring(stages_last, grid), [0, 3, 1, 2])
        return results

    return explain_on_film


def peak_box(maps):
    """The box around the region that reaches half of a map's peak and holds the peak.

    Pixels that touch at a corner are connected; of equal peaks the first one counts, row by row.

    Args:
        maps: float (N, H, W), finite.

    Returns:
        float32 (N, 4): x, y of the upper left corner, width and height, as shares of the map's width and
        height; 0 four times for a map without a positive value, which speaks for nothing.
    """
    height, width = maps.shape[1:3]
    peaks = tf.reduce_max(maps, axis=(1, 2), keepdims=True)
    allowed = tf.cast((maps >= _BOX_SHARE * peaks) & (peaks > 0), tf.float32)[..., None]
    first = tf.argmax(tf.reshape(maps, [-1, height * width]), axis=-1)
    region = tf.reshape(tf.one_hot(first, height * width), [-1, height, width, 1]) * allowed

    def grow(region, _):
        grown = tf.nn.max_pool2d(region, 3, 1, "SAME") * allowed
        return grown, tf.reduce_any(grown != region)

    region, _ = tf.while_loop(lambda _, growing: growing, grow, (region, tf.constant(True)))
    region = region[..., 0] > 0
    x, across = _extent(tf.reduce_any(region, axis=1))
    y, down = _extent(tf.reduce_any(region, axis=2))
    return tf.stack([x / width, y / height, across / width, down / height], axis=-1)


def _extent(line):
    """Where the True of bool (N, n) begin, and how long they are, float32; 0 where there are none."""
    count = line.shape[1]
    first = tf.argmax(tf.cast(line, tf.int32), axis=-1)
    last = count - tf.argmax(tf.cast(line[:, ::-1], tf.int32), axis=-1)
    there = tf.reduce_any(line, axis=-1)
    return (tf.where(there, tf.cast(value, tf.float32), 0.0) for value in (first, last - first))
