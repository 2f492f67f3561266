"""What all GANs share: two optimizers, one training step, moving averages and spectral normalisation."""

import keras
import tensorflow as tf
from keras import layers

from kxray.layers.diff_augment import DiffAugment
from kxray.layers.self_attention import SelfAttention

_POWER_ITERATIONS = 15


class AdversarialModel(keras.Model):
    """A generator, its discriminators, and how they are trained in turns.

    A model of this kind says how one update of its discriminators and one of its generator are made
    (`_update_discriminators(batch, update)`, `_update_generator(batch, update)`: a dict of scalars each), and
    of what it is built again (`get_config`).

    Args:
        generator: keras.Model.
        discriminators: dict from side in pixels to keras.Model.
        ema_generator: a generator of the same make for the moving average of its weights, or None.
        first_input: name of the batch's entry by which its films are counted.
    """

    def __init__(self, generator, discriminators, ema_generator=None, *, first_input, **kwargs):
        super().__init__(**kwargs)
        self.first_input = first_input
        self.generator = generator
        self.sides = tuple(discriminators)
        for side, discriminator in discriminators.items():
            setattr(self, f"discriminator_{side}", discriminator)
        self.ema_generator = ema_generator
        self._attentions = [
            layer
            for model in (generator, ema_generator)
            if model is not None
            for layer in model.layers
            if isinstance(layer, SelfAttention)
        ]
        if ema_generator is not None:
            ema_generator.set_weights([variable.numpy() for variable in generator.weights])
            ema_generator.trainable = False
        for _ in range(_POWER_ITERATIONS):
            for layer in self._spectral_layers():
                vector, kernel = layer.normalized_weights()
                layer.vector_u.assign(vector)
                layer.kernel.assign(kernel)
        self.built = True

    @property
    def discriminators(self) -> dict:
        return {side: getattr(self, f"discriminator_{side}") for side in self.sides}

    @property
    def sampling_generator(self) -> keras.Model:
        """The moving average where there is one, else the generator itself."""
        return self.ema_generator or self.generator

    @property
    def num_draws(self) -> int:
        """Random numbers that each film of an update takes."""
        return DiffAugment.num_draws

    @property
    def tau(self) -> float:
        """How much of its self-attention the generator lets in; NaN where it has none."""
        return float(self._attentions[0].tau.numpy()) if self._attentions else float("nan")

    def set_tau(self, tau) -> None:
        """Sets tau of a model whose tau is scheduled; nothing where it is learned, or there is none."""
        for layer in self._attentions:
            if layer.tau_rule == "schedule":
                layer.tau.assign(tau)

    def set_training(self, optimizers, *, augment, ema_decay, accumulate, updates):
        """What `compile` of every GAN sets.

        Args:
            optimizers: keras.optimizers.Optimizer of the generator and of the discriminators.
            augment: policies of `kxray.layers.DiffAugment`.
            ema_decay: share of its old value that the moving average keeps at each generator update; less at
                first, (1 + n) / (10 + n) at update n.
            accumulate: parts that each device's films of an update are divided into.
            updates: (generator updates, discriminator updates) of a step.
        """
        generator_optimizer, discriminator_optimizer = optimizers
        super().compile(optimizer=generator_optimizer, jit_compile=False)
        self.generator_optimizer = self.optimizer
        if isinstance(self.generator_optimizer, keras.optimizers.LossScaleOptimizer):
            discriminator_optimizer = keras.optimizers.LossScaleOptimizer(discriminator_optimizer)
        self.discriminator_optimizer = discriminator_optimizer
        self.augment = DiffAugment(augment, dtype="float32") if augment else None
        self.ema_decay, self.accumulate, self.updates = ema_decay, accumulate, updates
        self.generator_optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer.build(self._discriminator_variables())

    def train_step(self, batch):
        """All discriminator updates of a step, and then its generator updates.

        Args:
            batch: what the model's batches (`kxray.data.gan_batches`, `kxray.data.counterfactual_batches`)
                yield.

        Returns:
            dict of scalars, means over the updates.
        """
        generator_updates, discriminator_updates = self.updates
        films = batch[self.first_input].shape[0]
        if films is not None and films % self.accumulate:
            raise ValueError(
                f"a device's {films} films of a batch do not divide into accumulate={self.accumulate} parts"
            )
        logs = []
        for update in range(discriminator_updates):
            logs.append(self._update_discriminators(batch, update))
        for update in range(discriminator_updates, discriminator_updates + generator_updates):
            logs.append(self._update_generator(batch, update))
        return means(logs)

    def without_optimizers(self):
        """A copy with the same weights and nothing else: what is worth keeping of a finished training."""
        copy = type(self).from_config(self.get_config())
        copy.set_weights(self.get_weights())
        return copy

    def get_compile_config(self):
        return None

    def _apply_to_discriminators(self, gradients):
        """Updates the discriminators by their gradients, a list for each side."""
        self.discriminator_optimizer.apply(
            [slope for side in self.sides for slope in gradients[side]], self._discriminator_variables()
        )
        self._project(self._spectral_layers(generator=False))

    def _apply_to_generator(self, gradients):
        self.generator_optimizer.apply(gradients, self.generator.trainable_variables)
        self._project(self._spectral_layers(discriminator=False))
        if self.ema_generator is not None:
            self._average()

    def _average(self):
        # A long memory of random weights is of no use: it grows with the updates.
        updates = tf.cast(self.generator_optimizer.iterations.value, tf.float32)
        decay = tf.minimum(self.ema_decay, (1.0 + updates) / (10.0 + updates))

        def follow(average, value):
            average.assign(decay * average + (1.0 - decay) * value)

        # A tau that is set is set in both.
        scheduled = {id(layer.tau) for layer in self._attentions if layer.tau_rule == "schedule"}
        for average, value in zip(self.ema_generator.weights, self.generator.weights, strict=True):
            if id(value) not in scheduled:
                _on_every_device([average, value], follow)

    def _parts(self, batch):
        """The films of an update in `accumulate` parts, as slices."""
        size = tf.shape(batch[self.first_input])[0] // self.accumulate
        return [slice(number * size, (number + 1) * size) for number in range(self.accumulate)]

    def _scaled(self, loss, optimizer):
        # Every device sees its own films of a batch, and gradients are added over devices.
        loss = loss / (self.accumulate * tf.distribute.get_strategy().num_replicas_in_sync)
        return optimizer.scale_loss(loss)

    def _discriminator_variables(self):
        return [variable for model in self.discriminators.values() for variable in model.trainable_variables]

    def _spectral_layers(self, generator=True, discriminator=True):
        models = [self.generator] * generator + list(self.discriminators.values()) * discriminator
        return [
            layer
            for model in models
            for layer in model.layers
            if isinstance(layer, layers.SpectralNormalization)
        ]

    @staticmethod
    def _project(wrappers):
        """Divides kernels by their largest singular value, found by one more power iteration each."""
        for wrapper in wrappers:
            _on_every_device([wrapper.kernel, wrapper.vector_u], _divide_by_norm)


def gradients_of(tape, loss, variables):
    # A part of a loss may leave out a head, and a slope does not depend on biases.
    found = tape.gradient(loss, variables)
    pairs = zip(found, variables, strict=True)
    return [tf.zeros(variable.shape) if slope is None else slope for slope, variable in pairs]


def added(total, more):
    """Lists of gradients, one by one; the first may be None."""
    if total is None:
        return more
    return [one + other for one, other in zip(total, more, strict=True)]


def told(kind, said):
    """What discriminators' heads say of films on average, named by the kind of film."""
    return {f"{kind}_{head}": tf.reduce_mean(scores) for head, scores in said.items()}


def means(logs):
    """Of every number the mean over the logs that have it."""
    return {
        name: tf.reduce_mean([log[name] for log in logs if name in log])
        for name in dict.fromkeys(name for log in logs for name in log)
    }


def _divide_by_norm(kernel, vector):
    flat = tf.reshape(kernel, (-1, kernel.shape[-1]))
    other = tf.math.l2_normalize(tf.matmul(vector, flat, transpose_b=True))
    new = tf.math.l2_normalize(tf.matmul(other, flat))
    norm = tf.matmul(tf.matmul(other, flat), new, transpose_b=True)
    vector.assign(new)
    kernel.assign(kernel / tf.maximum(tf.reshape(norm, ()), 1e-12))


def _on_every_device(variables, change):
    """Runs `change(*variables)` on each device's copies, which agree; the first of them decides where."""
    variables = [variable.value for variable in variables]
    if not (tf.distribute.has_strategy() and tf.distribute.in_cross_replica_context() is False):
        change(*variables)
        return

    def merged(strategy, *copies):
        strategy.extended.update(copies[0], change, args=copies[1:])

    tf.distribute.get_replica_context().merge_call(merged, args=tuple(variables))
