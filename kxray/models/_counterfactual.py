"""The model of a counterfactual GAN: what changes films, and the step that trains it."""

import keras
import numpy as np
import tensorflow as tf

from kxray.models._adversarial import AdversarialModel, added, gradients_of, means, told

ADVERSARIAL = ("least_squares", "wgan_gp")


@keras.saving.register_keras_serializable("kxray")
class CounterfactualGAN(AdversarialModel):
    """Changes films so that a frozen classifier says something else, and keeps the rest of them.

    Made by `kxray.models.build("counterfactual_gan", ...)`, which a saved .keras file calls again. The
    classifier is no part of it: `compile` is told it, nothing of it is trained or saved.

    Args:
        options: of `build`.
        generator: keras.Model {"film" (N, s, s, 1) in [0, 1], "condition" (N, T)} -> {"film", "mask",
            "residual"}.
        discriminators: dict from the side to its discriminator.
        ema_generator: a generator of the same make for the moving average of its weights, or None.

    Call arguments:
        inputs: {"film": float (N, s, s, 1) in [0, 1], "condition": float (N, T), one-hot}.

    Returns:
        dict of float32 (N, s, s, 1): film (the counterfactual), mask, residual.
    """

    def __init__(self, options, generator, discriminators, ema_generator=None, **kwargs):
        name = kwargs.pop("name", "counterfactual_gan")
        super().__init__(generator, discriminators, ema_generator, first_input="targets", name=name, **kwargs)
        self.options = options
        self.side, self.num_targets = options["side"], options["num_targets"]
        self._traced_change = None

    @property
    def num_draws(self) -> int:
        """Random numbers that each film of an update takes: for its augmentation, and one for the penalty."""
        return super().num_draws + 1

    def call(self, inputs, training=False):
        return self.sampling_generator(inputs, training=training)

    def change(self, films, targets, *, region=None, batch_size=16) -> dict:
        """Makes counterfactuals.

        Args:
            films: float (N, s, s, 1) in [0, 1].
            targets: int (N,), what each is to become.
            region: float or bool (N, s, s, 1) or (s, s, 1), multiplies the mask: where it is 0 nothing
                changes; None: 1 everywhere.
            batch_size: films that are changed at a time.

        Returns:
            dict of float32 (N, s, s, 1): film y in [0, 1], mask a in [0, 1], residual r.

        Raises:
            ValueError: films of another size, outside [0, 1] or with NaN, or targets that are none.
        """
        films, targets, region = self._checked(films, targets, region)
        if self._traced_change is None:
            self._traced_change = tf.function(self.changed, reduce_retracing=True)
        parts = []
        for start in range(0, len(films), batch_size):
            some = slice(start, start + batch_size)
            made = self._traced_change(*(tf.constant(values[some]) for values in (films, targets, region)))
            parts.append({name: value.numpy() for name, value in made.items()})
        empty = np.zeros((0, self.side, self.side, 1), np.float32)
        return {
            name: np.concatenate([part[name] for part in parts]) if parts else empty
            for name in ("film", "mask", "residual")
        }

    def changed(self, films, targets, region):
        """What `change` computes, of tensors: plain TensorFlow ops, for graphs that are exported."""
        made = self({"film": films, "condition": tf.one_hot(targets, self.num_targets)}, training=False)
        mask, residual = made["mask"] * region, made["residual"]
        return {
            "film": tf.clip_by_value(films + mask * residual, 0.0, 1.0),
            "mask": mask,
            "residual": residual,
        }

    def _checked(self, films, targets, region):
        shape = (self.side, self.side, 1)
        films, targets = np.asarray(films), np.asarray(targets)
        if films.ndim != 4 or films.shape[1:] != shape or films.dtype.kind != "f":
            raise ValueError(f"expected float films (N, {self.side}, {self.side}, 1), got {films.dtype} "
                             f"{films.shape}")  # fmt: skip
        if not (np.isfinite(films).all() and (not films.size or (films.min() >= 0 and films.max() <= 1))):
            raise ValueError("expected films in [0, 1] without NaN; read them with kxray.read_image()")
        known = targets.dtype.kind in "iu" and ((targets >= 0) & (targets < self.num_targets)).all()
        if targets.shape != (len(films),) or not known:
            raise ValueError(
                f"expected {len(films)} targets, whole numbers in [0, {self.num_targets}), got "
                f"{np.unique(targets).tolist()} {targets.shape}"
            )
        region = np.ones(shape, np.float32) if region is None else np.asarray(region, np.float32)
        if region.shape not in (shape, films.shape) or not ((region >= 0) & (region <= 1)).all():
            raise ValueError(f"expected a region {shape} or {films.shape} in [0, 1], got {region.shape}")
        return films.astype(np.float32), targets.astype(np.int32), np.broadcast_to(region, films.shape)

    def compile(
        self,
        generator_optimizer,
        discriminator_optimizer,
        *,
        loss,
        adversarial="least_squares",
        penalty=10.0,
        mismatched=0.0,
        augment=(),
        ema_decay=0.999,
        accumulate=1,
        generator_updates=1,
        discriminator_updates=1,
    ):
        """Sets how it is trained.

        Args:
            generator_optimizer, discriminator_optimizer: keras.optimizers.Optimizer.
            loss: `kxray.explain.counterfactual_losses.CounterfactualLoss` of the frozen classifier.
            adversarial: "least_squares", or "wgan_gp": Wasserstein distance with the penalty on gradients
                (Gulrajani et al., 2017), whose norm is over all pixels of a film.
            penalty: its weight.
            mismatched: weight of films without the target under the target's name, which discriminators are
                to take for generated.
            augment, ema_decay, accumulate, generator_updates, discriminator_updates: as of
                `build("attention_cgan")`.

        Raises:
            ValueError: a classifier of other films, or with another number of targets.
        """
        if tuple(loss.spec.image_size) != (self.side, self.side):
            raise ValueError(
                f"the classifier takes films of {'x'.join(map(str, loss.spec.image_size))} pixels, this GAN "
                f"makes {self.side}x{self.side}"
            )
        if len(loss.targets) != self.num_targets:
            raise ValueError(f"this GAN has {self.num_targets} targets, got {len(loss.targets)}")
        if adversarial not in ADVERSARIAL:
            raise ValueError(f"adversarial must be {' or '.join(ADVERSARIAL)}, got {adversarial!r}")
        self.counterfactual_loss = loss
        self.adversarial, self.penalty, self.mismatched = adversarial, penalty, mismatched
        self._traced_judge = None
        self.set_training(
            (generator_optimizer, discriminator_optimizer),
            augment=augment,
            ema_decay=ema_decay,
            accumulate=accumulate,
            updates=(generator_updates, discriminator_updates),
        )

    def judge(self, films, targets, real, *, batch_size=16) -> dict:
        """The terms of the loss, without the adversarial one, of films that are not learned from.

        Args:
            films: float (N, s, s, 1), which have not the target.
            targets: int (N,).
            real: float (N, s, s, 1), films that have it.

        Returns:
            dict of floats, means over films: classifier, keep, identity, proximity, sparsity, variation, and
            objective, their weighted sum.
        """
        if self._traced_judge is None:
            self._traced_judge = tf.function(
                lambda films, targets, real: self._terms(
                    self.sampling_generator,
                    {"films": films, "targets": targets, "real": real},
                    training=False,
                )[1],
                reduce_retracing=True,
            )
        sums, count = {}, len(films)
        for start in range(0, count, batch_size):
            some = slice(start, start + batch_size)
            terms = self._traced_judge(
                tf.constant(films[some], tf.float32),
                tf.constant(targets[some], tf.int32),
                tf.constant(real[some], tf.float32),
            )
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(films[some]) / count
        return sums

    def get_config(self):
        return {"options": self.options}

    @classmethod
    def from_config(cls, config):
        from kxray.models import build

        return build("counterfactual_gan", **config["options"])

    def _terms(self, generator, batch, *, training, back=None):
        """(counterfactuals of a batch's films, dict of the loss's terms, means over its films)."""
        films, targets, real = batch["films"], batch["targets"], batch["real"]
        count, condition = tf.shape(films)[0], tf.one_hot(targets, self.num_targets)
        both = generator(
            {"film": tf.concat([films, real], 0), "condition": tf.concat([condition, condition], 0)},
            training=training,
        )
        made, kept = (
            {name: values[part] for name, values in both.items()}
            for part in (slice(None, count), slice(count, None))
        )
        terms = self.counterfactual_loss.terms(films, made["film"], made["mask"], targets)
        # A mask that is 1 everywhere by construction has nothing to be sparse.
        masked = self.options["attention"] and self.options["residual"]
        unneeded = tf.reduce_mean(kept["mask"]) if masked else 0.0
        terms["identity"] = tf.reduce_mean(tf.abs(kept["film"] - real)) + unneeded
        if back is not None:
            again = generator(
                {"film": made["film"], "condition": tf.one_hot(back, self.num_targets)}, training=training
            )
            terms["cycle"] = tf.reduce_mean(tf.abs(again["film"] - films))
        terms = {name: tf.reduce_mean(value) for name, value in terms.items()}
        return made["film"], {**terms, "objective": self.counterfactual_loss.weights.total(terms)}

    def _update_discriminators(self, batch, update):
        discriminator, gradients, logs = self.discriminators[self.side], None, []
        for part in self._parts(batch):
            own = {name: values[part, update] for name, values in batch.items()}
            condition = tf.one_hot(own["targets"], self.num_targets)
            made = self.generator({"film": own["films"], "condition": condition}, training=True)["film"]
            real = self._seen(own["real"], own["draws"][:, 0])
            made = self._seen(tf.stop_gradient(made), own["draws"][:, 1])
            with tf.GradientTape() as tape:
                loss, scores = self._discriminated(real, made, condition)
                if self.mismatched:
                    wrong = self._seen(own["films"], own["draws"][:, 1])
                    said = discriminator({"film": wrong, "condition": condition}, training=False)
                    loss += self.mismatched * self._judged({"conditional": said["conditional"]}, real=False)
                if self.adversarial == "wgan_gp":
                    loss += self.penalty * self._slope(real, made, condition, own["draws"][:, 0, -1])
                scaled = self._scaled(loss, self.discriminator_optimizer)
            gradients = added(gradients, gradients_of(tape, scaled, discriminator.trainable_variables))
            logs.append({"discriminator_loss": loss, **scores})
        self._apply_to_discriminators({self.side: gradients})
        return means(logs)

    def _discriminated(self, real, made, condition):
        both = self.discriminators[self.side](
            {"film": tf.concat([real, made], 0), "condition": tf.concat([condition, condition], 0)},
            # Not as in training: kernels are normalised after every update, not at every call.
            training=False,
        )
        count = tf.shape(real)[0]
        of_real = {head: values[:count] for head, values in both.items()}
        of_made = {head: values[count:] for head, values in both.items()}
        loss = self._judged(of_real, real=True) + self._judged(of_made, real=False)
        return loss, {**told("real", of_real), **told("fake", of_made)}

    def _judged(self, said, real):
        """The discriminator's loss of heads that look at real films, or at others."""
        if self.adversarial == "wgan_gp":
            return tf.add_n([tf.reduce_mean(-scores if real else scores) for scores in said.values()])
        wanted = 1.0 if real else 0.0
        return tf.add_n([0.5 * tf.reduce_mean(tf.square(scores - wanted)) for scores in said.values()])

    def _slope(self, real, made, condition, draws):
        between = made + tf.reshape(draws, (-1, 1, 1, 1)) * (real - made)
        with tf.GradientTape() as inner:
            inner.watch(between)
            said = self.discriminators[self.side]({"film": between, "condition": condition}, training=False)
            total = tf.add_n([tf.reduce_sum(scores) for scores in said.values()])
        slopes = inner.gradient(total, between)
        norms = tf.sqrt(tf.reduce_sum(tf.square(slopes), axis=(1, 2, 3)) + 1e-12)
        return tf.reduce_mean(tf.square(norms - 1.0))

    def _update_generator(self, batch, update):
        variables, gradients, logs = self.generator.trainable_variables, None, []
        weights = self.counterfactual_loss.weights
        for part in self._parts(batch):
            own = {name: values[part, update] for name, values in batch.items()}
            condition = tf.one_hot(own["targets"], self.num_targets)
            back = own["back"] if weights.cycle else None
            with tf.GradientTape() as tape:
                made, terms = self._terms(self.generator, own, training=True, back=back)
                seen = self._seen(made, own["draws"][:, 1])
                said = self.discriminators[self.side]({"film": seen, "condition": condition}, training=False)
                # What discriminators take for real, in either form.
                adversarial = self._judged(said, real=True)
                loss = weights.adversarial * adversarial + terms["objective"]
                scaled = self._scaled(loss, self.generator_optimizer)
            gradients = added(gradients, gradients_of(tape, scaled, variables))
            logs.append({"generator_loss": loss, "adversarial": adversarial, **terms})
        self._apply_to_generator(gradients)
        return means(logs)

    def _seen(self, films, draws):
        """Films as discriminators take them, in [-1, 1], changed at random where that is asked for."""
        if self.augment is not None:
            films = self.augment(films, draws[:, : super().num_draws])
        return 2.0 * films - 1.0
