"""What conditional GANs share: one model with one training step, and films out of it."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kxray.models._adversarial import AdversarialModel, added, gradients_of, means, told

LOSSES = ("least_squares", "cross_entropy")


@keras.saving.register_keras_serializable("kxray")
class ConditionalGAN(AdversarialModel):
    """A generator of films of a wanted class, its discriminators, and the step that trains them.

    Made by `kxray.models.build("attention_cgan" | "cdcgan", ...)`, which a saved .keras file calls again.

    Args:
        builder: name of the model, as `kxray.models.build` knows it.
        options: its options.
        generator: keras.Model {"z" (N, latent), "condition" (N, L)} -> {"film_<side>": (N, side, side, 1)} in
            [-1, 1].
        discriminators: dict from side to keras.Model {"film", "condition"} -> dict of heads (N,):
            "unconditional", "conditional" or both.
        ema_generator: a generator of the same make for the moving average of its weights, or None.
        loss: "least_squares": equations (5) and (6) of Ann et al. (2020), a = 0, b = d = 1;
            "cross_entropy": of logits, the generator's not saturating (Goodfellow et al., 2014).
        apart: whether discriminators see real and generated films in batches of their own, as batch
            normalisation wants.

    Call arguments:
        inputs: {"z": float (N, latent), "condition": float (N, L), one-hot}.

    Returns:
        What the sampling generator makes of them, in [-1, 1]; `sample` gives films.
    """

    def __init__(
        self,
        builder,
        options,
        generator,
        discriminators,
        ema_generator=None,
        *,
        loss="least_squares",
        apart=False,
        **kwargs,
    ):
        name = kwargs.pop("name", builder)
        super().__init__(generator, discriminators, ema_generator, first_input="classes", name=name, **kwargs)
        self.builder, self.options, self.loss_kind, self.apart = builder, options, loss, apart
        self.latent = generator.inputs[1].shape[-1]
        self.num_classes = generator.inputs[0].shape[-1]
        self._traced_sample = None

    def call(self, inputs, training=False):
        return self.sampling_generator(inputs, training=training)

    def sample(self, classes, *, seed=0, z=None, truncation=1.0, batch_size=16) -> dict:
        """Makes films.

        Args:
            classes: int (N,), the class of each.
            seed: film i is made of z number i of this seed, whatever the other films are.
            z: float (N, latent), instead of the seed.
            truncation: z is multiplied by it; below 1 films are more alike and more typical.
            batch_size: films that are made at a time.

        Returns:
            dict from side in pixels to float32 (N, side, side, 1) in [0, 1].

        Raises:
            ValueError: classes that are no indices of a class, or a z of another shape.
        """
        classes = np.asarray(classes).reshape(-1)
        whole = classes.dtype.kind in "iu" or not len(classes)
        if not whole or ((classes < 0) | (classes >= self.num_classes)).any():
            got = np.unique(classes).tolist()
            raise ValueError(f"classes must be whole numbers in [0, {self.num_classes}), got {got}")
        classes = classes.astype(np.int64)
        z = latents(seed, len(classes), self.latent) if z is None else np.asarray(z, np.float32)
        if z.shape != (len(classes), self.latent):
            raise ValueError(f"z must be ({len(classes)}, {self.latent}), got {z.shape}")
        if self._traced_sample is None:
            self._traced_sample = tf.function(
                lambda z, condition: {
                    name: (film + 1.0) / 2.0
                    for name, film in self({"z": z, "condition": condition}, training=False).items()
                },
                reduce_retracing=True,
            )
        condition = np.eye(self.num_classes, dtype=np.float32)[classes]
        made = {side: np.zeros((len(classes), side, side, 1), np.float32) for side in self.sides}
        for start in range(0, len(classes), batch_size):
            some = slice(start, start + batch_size)
            films = self._traced_sample(
                tf.constant(truncation * z[some], tf.float32), tf.constant(condition[some])
            )
            for side in self.sides:
                made[side][some] = films[f"film_{side}"].numpy()
        return made

    def compile(
        self,
        generator_optimizer,
        discriminator_optimizer,
        *,
        augment=(),
        ema_decay=0.999,
        r1=0.0,
        mismatched=0.0,
        accumulate=1,
        generator_updates=1,
        discriminator_updates=5,
    ):
        """Sets how it is trained.

        Args:
            generator_optimizer, discriminator_optimizer: keras.optimizers.Optimizer.
            augment: policies of `kxray.layers.DiffAugment`.
            ema_decay: share of its old value that the moving average keeps at each generator update; less at
                first, (1 + n) / (10 + n) at update n.
            r1: weight of the penalty on the discriminators' gradients at real films (Mescheder et al., 2018).
            mismatched: weight of real films under a wrong class, which the conditional head is to take for
                generated (Reed et al., 2016); 0: the paper's loss.
            accumulate: parts that each device's films of an update are divided into; their gradients are
                added, so that less memory is needed. Batch normalisation sees the films of a part.
            generator_updates, discriminator_updates: of one step.

        Raises:
            ValueError: mismatched films where there is only one class.
        """
        if mismatched and self.num_classes == 1:
            raise ValueError("mismatched films need several classes, this GAN has one")
        self.r1, self.mismatched = r1, mismatched
        self.set_training(
            (generator_optimizer, discriminator_optimizer),
            augment=augment,
            ema_decay=ema_decay,
            accumulate=accumulate,
            updates=(generator_updates, discriminator_updates),
        )

    def get_config(self):
        return {"builder": self.builder, "options": self.options}

    @classmethod
    def from_config(cls, config):
        from kxray.models import build

        return build(config["builder"], **config["options"])

    def _made(self, batch, update, part):
        """dict from side to the films that discriminators see of a part of an update."""
        films = self.generator(
            {
                "z": batch["z"][part, update],
                "condition": tf.one_hot(batch["fake_classes"][part, update], self.num_classes),
            },
            training=True,
        )
        draws = batch["draws"][part, update, 1]
        return {side: self._changed(films[f"film_{side}"], draws) for side in self.sides}

    def _update_discriminators(self, batch, update):
        real = _pyramid(2.0 * batch["films"][:, update] - 1.0, self.sides)
        classes, others, made_classes = (
            tf.one_hot(batch[name][:, update], self.num_classes)
            for name in ("classes", "other_classes", "fake_classes")
        )
        gradients, logs = dict.fromkeys(self.sides), []
        for part in self._parts(batch):
            made = self._made(batch, update, part)
            for side, discriminator in self.discriminators.items():
                films = self._changed(real[side][part], batch["draws"][part, update, 0])
                looks = self._looks(
                    discriminator,
                    (films, classes[part], others[part]),
                    (tf.stop_gradient(made[side]), made_classes[part]),
                )
                # A tape each: devices must add gradients up in one order, and branches of a tape have none.
                for look in looks:
                    with tf.GradientTape() as tape:
                        loss, scores = look()
                        scaled = self._scaled(loss, self.discriminator_optimizer)
                    found = gradients_of(tape, scaled, discriminator.trainable_variables)
                    gradients[side] = added(gradients[side], found)
                    logs.append({"loss": loss, **{f"{name}_{side}": value for name, value in scores.items()}})
        self._apply_to_discriminators(gradients)
        total = tf.add_n([log.pop("loss") for log in logs]) / self.accumulate
        return {"discriminator_loss": total, **means(logs)}

    def _looks(self, discriminator, real, generated):
        """Functions that each give (a part of a discriminator's loss, what it said of the films): eq. (5)."""
        films, classes, others = real
        made, made_classes = generated

        def scores(film, condition):
            # Not as in training: kernels are normalised after every update, not at every call.
            return discriminator({"film": film, "condition": condition}, training=self.apart)

        def at_films():
            said = scores(films, classes)
            return self._judged(said, 1.0), told("real", said)

        def at_made():
            said = scores(made, made_classes)
            return self._judged(said, 0.0), told("fake", said)

        def at_both():
            both = scores(tf.concat([films, made], 0), tf.concat([classes, made_classes], 0))
            count = tf.shape(films)[0]
            said = {head: values[:count] for head, values in both.items()}
            of_made = {head: values[count:] for head, values in both.items()}
            loss = self._judged(said, 1.0) + self._judged(of_made, 0.0)
            return loss, {**told("real", said), **told("fake", of_made)}

        def at_mismatched():
            said = {"conditional": scores(films, others)["conditional"]}
            return self.mismatched * self._judged(said, 0.0), {}

        def slope():
            with tf.GradientTape() as inner:
                inner.watch(films)
                total = tf.add_n([tf.reduce_sum(values) for values in scores(films, classes).values()])
            slopes = inner.gradient(total, films)
            return 0.5 * self.r1 * tf.reduce_mean(tf.reduce_sum(tf.square(slopes), axis=(1, 2, 3))), {}

        looks = [at_films, at_made] if self.apart else [at_both]
        return looks + [at_mismatched] * bool(self.mismatched) + [slope] * bool(self.r1)

    def _update_generator(self, batch, update):
        variables, gradients, logs = self.generator.trainable_variables, None, []
        condition = tf.one_hot(batch["fake_classes"][:, update], self.num_classes)
        for part in self._parts(batch):
            with tf.GradientTape() as tape:
                made = self._made(batch, update, part)
                said = [
                    discriminator({"film": made[side], "condition": condition[part]}, training=self.apart)
                    for side, discriminator in self.discriminators.items()
                ]
                loss = tf.add_n([self._judged(heads, 1.0) for heads in said])
                scaled = self._scaled(loss, self.generator_optimizer)
            gradients = added(gradients, gradients_of(tape, scaled, variables))
            logs.append({"generator_loss": loss})
        self._apply_to_generator(gradients)
        return means(logs)

    def _judged(self, said, wanted):
        """The loss of heads that are wanted at 1 or 0: half of what is between the brackets of (5), (6)."""
        if self.loss_kind == "least_squares":
            return tf.add_n([0.5 * tf.reduce_mean(tf.square(scores - wanted)) for scores in said.values()])
        return tf.add_n(
            [
                tf.reduce_mean(
                    tf.nn.sigmoid_cross_entropy_with_logits(
                        labels=tf.fill(tf.shape(scores), wanted), logits=scores
                    )
                )
                for scores in said.values()
            ]
        )

    def _changed(self, films, draws):
        if self.augment is None:
            return films
        return 2.0 * self.augment((films + 1.0) / 2.0, draws) - 1.0


def latents(seed, count, length) -> np.ndarray:
    """z float32 (count, length) from N(0, 1): row i is a function of (seed, i) alone."""
    if not count:
        return np.zeros((0, length), np.float32)
    return np.stack([tf.random.stateless_normal([length], seed=[seed, row]).numpy() for row in range(count)])


def _pyramid(films, sides):
    """dict from side to films of that side, by the mean of squares of pixels."""
    largest = films.shape[1]
    return {side: films if side == largest else ops.average_pool(films, largest // side) for side in sides}
