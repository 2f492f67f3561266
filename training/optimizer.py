"""The rate of a run, and AdamW that trains every variable at its own rate, and from its own step on."""

import keras
from keras import ops

# Of the gradients of all variables together.
CLIP_NORM = 1.0


@keras.saving.register_keras_serializable("kxray")
class StagedAdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter, 2019) with discriminative rates and gradual unfreezing (Howard and
    Ruder, 2018, sections 3.2 and 3.3).

    A variable's step and its weight decay are those of AdamW at `learning_rate` times its factor, and zero
    before its first step; its moments are kept from the beginning, so that it starts to move without a jolt.
    Steps are counted in the graph: nothing is compiled anew when a stage is unfrozen.

    Args:
        learning_rate: as for AdamW.
        factors: variable path (such as "conv1_conv/kernel") -> factor, 0 or more; 1 where it has none.
        first_steps: variable path -> number of steps before the variable moves; 0 where it has none.
        **options: of `keras.optimizers.AdamW`.
    """

    def __init__(self, learning_rate=0.001, factors=None, first_steps=None, **options):
        super().__init__(learning_rate, **options)
        self.factors = dict(factors or {})
        self.first_steps = dict(first_steps or {})
        wrong = [path for path, factor in self.factors.items() if factor < 0]
        if wrong:
            raise ValueError(
                f"factors of the rate are 0 or more, got {self.factors[wrong[0]]} for {wrong[0]}"
            )

    def build(self, variables):
        super().build(variables)
        self._own_factors = [float(self.factors.get(variable.path, 1.0)) for variable in variables]
        self._own_first_steps = [int(self.first_steps.get(variable.path, 0)) for variable in variables]

    def _apply_weight_decay(self, variables):
        """Nothing here: `update_step` decays a variable at the variable's own rate."""

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self._own_factors[index]
        if self._own_first_steps[index]:
            begun = ops.greater_equal(self.iterations, self._own_first_steps[index])
            rate = rate * ops.cast(begun, variable.dtype)
        if self._use_weight_decay(variable):
            self.assign_sub(variable, variable * (rate * self.weight_decay))
        super().update_step(gradient, variable, rate)

    def get_config(self):
        return {**super().get_config(), "factors": self.factors, "first_steps": self.first_steps}


def stage_rates(model, stages, backbone_rate=0.1, stage_decay=1.0, unfreeze_steps=0) -> tuple[dict, dict]:
    """The arguments `factors` and `first_steps` of `StagedAdamW` for a network on a backbone.

    Args:
        model: the network.
        stages: names of the backbone's layers, stage by stage, shallow to deep, from
            `kxray.models.backbone_stages`.
        backbone_rate: factor of the backbone's last stage; the head's is 1.
        stage_decay: factor from one stage to the one before it.
        unfreeze_steps: the head trains from the first step on; so many steps later the last stage begins,
            then after as many again the stage before it, and so on. 0: all train from the first step on.
            Stages without trainable variables are passed over.

    Returns:
        (variable path -> factor, variable path -> number of steps before it moves).
    """
    factors, first_steps = {}, {}
    trained = [
        [variable for name in names for variable in model.get_layer(name).trainable_variables]
        for names in stages
    ]
    for depth, variables in enumerate(filter(None, reversed(trained))):
        for variable in variables:
            factors[variable.path] = backbone_rate * stage_decay**depth
            first_steps[variable.path] = (depth + 1) * unfreeze_steps
    return factors, first_steps


def warm_cosine(recipe, steps):
    """The rate of a run: it rises from 0, then falls to 0 by half a cosine; or stays, as the recipe says.

    Args:
        recipe: its options learning_rate (the highest), learning_rate_decay ("cosine" or "none"), warmup
            (share of the run) and epochs.
        steps: batches an epoch.

    Returns:
        A schedule of Keras, or the rate itself.
    """
    if recipe.learning_rate_decay != "cosine":
        return recipe.learning_rate
    run = recipe.epochs * steps
    warmup = max(1, round(recipe.warmup * run))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, run - warmup), warmup_target=recipe.learning_rate, warmup_steps=warmup
    )


def warm_adamw(recipe, steps):
    """AdamW at the rate of `warm_cosine`, with clipped gradients."""
    return keras.optimizers.AdamW(
        warm_cosine(recipe, steps), weight_decay=recipe.weight_decay, global_clipnorm=CLIP_NORM
    )
