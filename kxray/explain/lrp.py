"""Layer-wise relevance propagation (Bach et al., 2015): the logit, handed back layer by layer to pixels."""

import dataclasses
import inspect

import tensorflow as tf
from keras import layers

from kxray.explain._canonize import canonize as canonized
from kxray.explain._relevance import (
    adjoint,
    box,
    boxed,
    explain_with,
    padding_apart,
    passed,
    pulled,
    routed,
    signed_parts,
    unmoved,
    won,
)
from kxray.explain.graph import FILM, read

STABILIZER = 1e-6


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a linear layer hands the relevance of its outputs to its inputs; made by the functions below.

    Attributes:
        kind: name of the rule.
        epsilon: what is added to denominators, with their sign (that of 0 is +).
        gamma, alpha, beta: see the rules.
        zero_bias: whether the bias stays out of the denominators.
    """

    kind: str
    epsilon: float = STABILIZER
    gamma: float = 0.0
    alpha: float = 1.0
    beta: float = 0.0
    zero_bias: bool = False


def _positive(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return float(value)


def epsilon(epsilon=STABILIZER, zero_bias=False) -> Rule:
    """LRP-epsilon (Bach et al., 2015, eq. 58): R_i = x_i sum_j w_ij R_j / (z_j + epsilon sign z_j)."""
    return Rule("epsilon", _positive("epsilon", epsilon), zero_bias=zero_bias)


def zplus(zero_bias=False) -> Rule:
    """z+ (Montavon et al., 2017, eq. 11), or alpha 1 beta 0: contributions x_i w_ij > 0 share R_j."""
    return Rule("alpha_beta", zero_bias=zero_bias)


def alpha_beta(alpha=2.0, beta=1.0, zero_bias=False) -> Rule:
    """alpha-beta (Bach et al., 2015, eq. 60): contributions for R_j get alpha R_j, those against -beta R_j.

    alpha - beta = 1. Where a unit has contributions of one sign only, relevance is not conserved.
    """
    if not alpha >= 1 or beta < 0 or abs(alpha - beta - 1) > 1e-9:
        raise ValueError(f"alpha - beta must be 1, and beta at least 0, got alpha={alpha}, beta={beta}")
    return Rule("alpha_beta", alpha=float(alpha), beta=float(beta), zero_bias=zero_bias)


def gamma(gamma=0.25, zero_bias=False) -> Rule:
    """LRP-gamma (Montavon et al., 2019, sec. 10.2.3): contributions of the output's sign weigh 1 + gamma."""
    return Rule("gamma", gamma=_positive("gamma", gamma), zero_bias=zero_bias)


def flat() -> Rule:
    """Flat (Bach et al., 2016): R_j goes evenly to all that the unit sees; none to zero padding."""
    return Rule("flat")


def w_square() -> Rule:
    """w^2 (Montavon et al., 2017, eq. 9): R_j is shared in proportion to the squared weights (and bias)."""
    return Rule("w_square")


def z_box() -> Rule:
    """z^B (Montavon et al., 2017, eq. 13), for pixels between bounds: x_i w_ij - low w_ij^+ - high w_ij^-.

    The bounds are the options `low` and `high` of `lrp`, in the film's own pixels; they go through the
    model's preprocessing and padding as a film does.
    """
    return Rule("z_box")


RULES = {
    "epsilon": epsilon,
    "zplus": zplus,
    "alpha_beta": alpha_beta,
    "gamma": gamma,
    "flat": flat,
    "w_square": w_square,
    "z_box": z_box,
}
# Name -> rules of convolutions, of dense layers, and of the linear layers that see the film (None: no other).
COMPOSITES = {
    "epsilon": ("epsilon", "epsilon", None),
    "zplus": (zplus(), zplus(), None),
    "gamma": (gamma(), gamma(), None),
    "alpha2_beta1": (alpha_beta(), alpha_beta(), None),
    "excitation": (zplus(zero_bias=True), zplus(zero_bias=True), None),
    "epsilon_plus": (zplus(), "epsilon", None),
    "epsilon_plus_flat": (zplus(), "epsilon", flat()),
    "epsilon_alpha2_beta1": (alpha_beta(), "epsilon", None),
    "epsilon_alpha2_beta1_flat": (alpha_beta(), "epsilon", flat()),
    "epsilon_gamma_box": (gamma(), "epsilon", z_box()),
}


def lrp(model, composite="epsilon_plus", canonize=None, rules=None, epsilon=STABILIZER, low=0.0, high=1.0):
    """Layer-wise relevance propagation with a rule for each kind of layer (Montavon et al., 2019).

    Relevance starts as the logit of the explained unit. Max pooling hands it to the largest value; average
    pooling and sums hand it out in proportion to what each input adds; activations and batch normalisation
    pass it on as it is (exact for ReLU; for SiLU, GELU and others, whose results change sign or slope, an
    approximation); products give it to the signal and none to the gate (Arras et al., 2017). Relevance is
    lost to biases and to `epsilon`. The epsilon rule for convolutions divides by sums that may cancel:
    through many batch normalisations that are not canonised its relevance grows beyond float32.

    Args:
        model: functional or built Sequential model; see `kxray.explain.graph.read`.
        composite: one of `COMPOSITES`: rules by kind of layer. "epsilon_plus": z+ for convolutions, epsilon
            for dense layers. "..._flat": flat for the layers that see the film. "epsilon_gamma_box": gamma
            for convolutions, z_box for those that see the film. "excitation": z+ without bias everywhere, as
            excitation backpropagation (Zhang et al., 2016).
        canonize: None, "fold" (convolution and batch normalisation become one layer; for ResNets) or "thresh"
            (also batch normalisation, ReLU, convolution, in that order; for DenseNets) (Pahde et al., 2023).
        rules: dict from a layer's name or class to a rule (`kxray.explain.lrp.gamma(0.1)`, or the name of a
            rule with its defaults), before the composite's. A name counts before a class, the first class
            that fits before later ones.
        epsilon: of the epsilon rule in composites, at least 0.
        low, high: bounds of the film's pixels, for z_box.

    Returns:
        Function (images (N, H, W, C), target int32 (N,)) -> dict of tensors: `heatmap` (N, H, W, C), signed,
        whose sum is the logit less what was lost, and `logits` (N, L).

    Raises:
        ValueError: an unknown option, or a layer without a rule, which is named.
    """
    if composite not in COMPOSITES:
        raise ValueError(f"unknown composite {composite!r}; the known ones are: {', '.join(COMPOSITES)}")
    if not low < high:
        raise ValueError(f"low must be below high, got low={low}, high={high}")
    graph = canonized(read(model), canonize)
    chosen = _rules_by_output(
        graph, COMPOSITES[composite], _checked(rules, model), Rule("epsilon", _positive("epsilon", epsilon))
    )
    non_negative = graph.non_negative()

    def propagate(values, step, upper):
        inputs = [values[number] for number in step.inputs]
        if step.kind == "max":
            return [won(step, inputs[0], upper, padding_apart(graph, values, step.inputs[0]))]
        if step.kind != "linear":
            return _without_choice(step, inputs, values[step.output], upper)
        rule = chosen[step.output]
        if rule.kind != "z_box":
            if rule.kind in ("flat", "w_square"):
                seen = unmoved(graph, values, step.inputs[0], lambda before: tf.ones_like(before[:1]))
                return [_blind(rule, step, seen, inputs[0], upper)]
            sure = step.inputs[0] in non_negative
            return [_RULES[rule.kind](rule, step, inputs[0], values[step.output], upper, sure)]
        film = tf.zeros_like(values[FILM][:1])
        bounds = box(graph, step.inputs[0], {FILM: (film + low, film + high)})
        return [boxed(step, inputs[0], *bounds, lambda total: upper / _stabilized(total, rule.epsilon))]

    return explain_with(model, graph, propagate)


def _checked(rules, model):
    """The user's rules, all of them Rule; ValueError for what no layer of the model answers to."""
    checked = {}
    if rules is not None and not isinstance(rules, dict):
        raise ValueError(f"rules must map layer names or classes to rules, got {rules!r}")
    for key, rule in (rules or {}).items():
        if isinstance(rule, str) and rule in RULES:
            rule = RULES[rule]()
        if not isinstance(rule, Rule):
            raise ValueError(
                f"a rule must be made by kxray.explain.lrp or be one of {', '.join(RULES)}, got {rule!r}"
            )
        if not isinstance(key, str) and not inspect.isclass(key):
            raise ValueError(f"rules are given by a layer's name or class, got {key!r}")
        checked[key] = rule
    return checked


def _rules_by_output(graph, composite, own, epsilon_rule):
    linear = [step for step in graph.steps if step.kind == "linear"]
    names = {step.name for step in linear}
    for key in own:
        if isinstance(key, str) and key not in names:
            raise ValueError(
                f"model {graph.name!r} has no linear layer {key!r}; it has: {', '.join(sorted(names))}"
            )
    first, chosen = graph.first_linear(), {}
    convolution, dense, seeing = (epsilon_rule if rule == "epsilon" else rule for rule in composite)
    for step in linear:
        rule = dense if isinstance(step.layer, layers.Dense) else convolution
        rule = seeing if seeing is not None and step.output in first else rule
        fitting = [
            found for key, found in own.items() if inspect.isclass(key) and isinstance(step.layer, key)
        ]
        rule = own.get(step.name, fitting[0] if fitting else rule)
        if rule.kind == "z_box" and step.output not in first:
            raise ValueError(f"z_box is for layers that see the film, {step.name!r} does not")
        chosen[step.output] = rule
    return chosen


def _without_choice(step, inputs, output, upper):
    """Relevance of all steps but the linear ones."""
    if step.kind in ("activation", "affine"):
        return [passed(step, inputs[0], upper)]
    if step.kind == "gate":
        return [passed(step, inputs[0], upper), *[None] * (len(inputs) - 1)]
    if step.kind == "threshold":
        scale, offset = step.weights(inputs[0].dtype)
        return [tf.where(inputs[0] * scale + offset > 0, upper, 0)]
    if step.kind in ("average", "sum"):
        pull = adjoint(step.run, *inputs)[1]
        shares = pull(upper / _stabilized(output, STABILIZER))
        return [x * share for x, share in zip(inputs, shares, strict=True)]
    return routed(step, inputs, upper)


def _stabilized(z, epsilon):
    return tf.where(z < 0, z - epsilon, z + epsilon)


def _epsilon(rule, step, x, z, upper, sure):
    kernel, bias = step.weights(x.dtype)
    z = z - bias if rule.zero_bias and bias is not None else z
    return x * pulled(step, kernel, x, upper / _stabilized(z, rule.epsilon))


def _alpha_beta(rule, step, x, z, upper, sure):
    kernel, bias = step.weights(x.dtype)
    bias = None if rule.zero_bias else bias
    rising, falling = signed_parts(kernel, False)
    positive, negative = signed_parts(x, sure)
    for_it = _shared(rule, step, ((positive, rising), (negative, falling)), bias, upper)
    if not rule.beta:
        return rule.alpha * for_it if rule.alpha != 1 else for_it
    bias = None if bias is None else -bias
    against = _shared(rule, step, ((positive, falling), (negative, rising)), bias, upper)
    return rule.alpha * for_it - rule.beta * against


def _shared(rule, step, pairs, bias, upper):
    """Relevance in proportion to what non-negative inputs give through non-negative kernels, and the bias."""
    pairs = [(x, kernel) for x, kernel in pairs if x is not None]
    total = sum(step.apply(x, kernel) for x, kernel in pairs)
    total = total if bias is None else total + tf.nn.relu(bias)
    share = upper / (total + rule.epsilon)
    return sum(x * pulled(step, kernel, x, share) for x, kernel in pairs)


def _gamma(rule, step, x, z, upper, sure):
    kernel, bias = step.weights(x.dtype)
    z = z - bias if rule.zero_bias and bias is not None else z
    bias = None if rule.zero_bias else bias
    positive, negative = signed_parts(x, sure)
    relevance = 0
    for side, bend in ((z > 0, tf.nn.relu), (z < 0, lambda values: tf.minimum(values, 0))):
        # Inputs below zero meet the kernel that is bent the other way.
        like, unlike = (
            kernel + rule.gamma * bend(kernel),
            kernel + rule.gamma * (kernel - bend(kernel)),
        )
        pairs = [(positive, like)] + ([] if negative is None else [(-negative, unlike)])
        total = sum(step.apply(part, bent) for part, bent in pairs)
        total = total if bias is None else total + bias + rule.gamma * bend(bias)
        share = tf.where(side, upper, 0) / _stabilized(total, rule.epsilon)
        relevance += sum(part * pulled(step, bent, part, share) for part, bent in pairs)
    return relevance


def _blind(rule, step, seen, x, upper):
    """flat and w_square, which do not look at the input; `seen` is 0 on zero padding and 1 elsewhere."""
    kernel, bias = step.weights(x.dtype)
    kernel = tf.ones_like(kernel) if rule.kind == "flat" else kernel**2
    total = step.apply(seen, kernel)
    if rule.kind == "w_square" and bias is not None and not rule.zero_bias:
        total = total + bias**2
    return seen * pulled(step, kernel, x, upper / (total + rule.epsilon))


_RULES = {"epsilon": _epsilon, "alpha_beta": _alpha_beta, "gamma": _gamma}
