"""Where a model sees a finding on a film: its evidence map, or what comes nearest to one."""

import numpy as np

# The model's own map, and its disease masks as the film's pose lays them, without the film.
EVIDENCE, MASK_ALONE = "evidence", "mask alone"
BATCH = 32
# Of methods that suit a model without evidence.
_CLASS_MAPS = ("multiscale_cam", "grad_cam")


class MapMaker:
    """The maps of a model for one finding of each film, in the film's frame, at the network's input size.

    They are the evidence of `kxray.models.with_evidence`, which of a plain network is its class activation
    map; else multi-scale CAM where the model has it, else Grad-CAM.

    Args:
        model: keras.Model from films (N, H, W, 1) to probabilities.

    Attributes:
        method: what the maps are: "evidence", "multiscale_cam" or "grad_cam".
        attends: whether the model has masks that can be taken off.
    """

    def __init__(self, model):
        from kxray import explain
        from kxray.layers import DiseaseAttention

        self.model = model
        self._attention = [layer for layer in model.layers if isinstance(layer, DiseaseAttention)]
        self.attends = bool(self._attention)
        try:
            self._run = self._traced()
            self.method = "evidence"
        except ValueError:
            methods = explain.default_methods(model)
            self.method = next((name for name in methods if name in _CLASS_MAPS), "grad_cam")

    def __call__(self, pixels, labels) -> dict:
        """float32 (N, H, W, 1) films and int (N,) findings -> dict of float (N, H, W) maps by name.

        EVIDENCE always; MASK_ALONE where the masks are not the same everywhere.
        """
        from kxray import explain

        if self.method != "evidence":
            maps = explain.attribute(self.model, pixels, labels, self.method, upsample=True)
            return {EVIDENCE: maps[..., 0]}
        outputs = self.outputs(pixels)
        names = {EVIDENCE: "evidence", MASK_ALONE: "mask"}
        return {
            kind: outputs[name][np.arange(len(labels)), :, :, labels]
            for kind, name in names.items()
            if name in outputs
        }

    def outputs(self, pixels) -> dict:
        """What `with_evidence` gives of films, as arrays; none for other methods.

        `mask_aligned` and `mask` (N, H, W, L), in the film's frame, are added where the masks are not the
        same everywhere.
        """
        if self.method != "evidence":
            return {}
        given = np.asarray(pixels, np.float32)
        batches = [self._run(given[start : start + BATCH]) for start in range(0, len(given), BATCH)]
        says_where = any(np.ptp(layer.masks.numpy(), axis=(0, 1)).any() for layer in self._attention[-1:])
        names = [name for name in batches[0] if says_where or not name.startswith("mask")]
        return {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in names}

    def without_masks(self, pixels, labels) -> np.ndarray:
        """float (N, H, W): the evidence of the same network where every place counts alike."""
        kept = [layer.masks.numpy() for layer in self._attention]
        try:
            for layer in self._attention:
                layer.masks.assign(np.ones(layer.masks.shape, np.float32))
            return self(pixels, labels)[EVIDENCE]
        finally:
            for layer, masks in zip(self._attention, kept, strict=True):
                layer.masks.assign(masks)

    def _traced(self):
        """Kept with the model, whose weights change from training to training: tracing takes seconds."""
        known = self.model.__dict__.get("_kxray_evidence_maps")
        if known is None:
            known = self.model.__dict__["_kxray_evidence_maps"] = _evidence_function(
                self.model, self._attention
            )
        return known


def _evidence_function(model, attention):
    """tf.function: films -> dict of `with_evidence`, and of a model with masks `mask` and `mask_aligned`."""
    import tensorflow as tf
    from keras import ops

    from kxray import models
    from kxray.layers import SimilaritySampler

    size = tuple(model.input_shape[1:3])
    whole = models.with_evidence(model, size=size)
    back = SimilaritySampler(inverse=True, size=size)

    @tf.function(input_signature=[tf.TensorSpec([None, *size, 1], tf.float32)])
    def run(pixels):
        outputs = dict(whole(pixels, training=False))
        if attention:
            # All stages have the same masks.
            masks = ops.image.resize(attention[-1].masks[None], size, interpolation="bilinear")
            outputs["mask_aligned"] = tf.repeat(masks, tf.shape(pixels)[0], axis=0)
            outputs["mask"] = back([outputs["mask_aligned"], outputs["pose"]])
        return outputs

    return run
