"""What a trained model promises: labels, input, decision rule, and where it comes from."""

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path

DECIDING_TASKS = ("binary", "multiclass", "multilabel")
TASKS = (*DECIDING_TASKS, "generator", "counterfactual", "autoencoder")
PIXEL_RULES = ("unit_stretch",)
UNSURE = "unsure"


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The contract that travels with a model from training to the served answer.

    Args:
        name: registry name of the architecture, for example `"view_cnn"`.
        labels: class names; the order of `probabilities` everywhere.
        task: `"binary"` (one sigmoid unit, the probability of `labels[1]`), `"multiclass"` (softmax),
            `"multilabel"` (one sigmoid a label), `"generator"` (makes films of any of `labels`),
            `"counterfactual"` (changes films so that a classifier says any of `labels`) or `"autoencoder"`
            (gives films back; its one label is "film").
        image_size: (height, width) of the network's input, in pixels; of a generator's largest films.
        pixel_rule: how film pixels become network input. `"unit_stretch"`: float32 in [0, 1], bone bright,
            one channel, stretched to `image_size` with antialiased bilinear interpolation.
        thresholds: smallest calibrated probability at which each label is decided, in [0, 1].
        temperature: logits are divided by it before the sigmoid or softmax (Guo et al., 2017, eq. 9).
        provenance: JSON-able facts: data fingerprint, split hash, dates, versions, measured scores.

    Raises:
        ValueError: a field is missing its range or its partner (a threshold for a label that is not there).
    """

    name: str
    labels: tuple[str, ...]
    task: str
    image_size: tuple[int, int]
    pixel_rule: str = "unit_stretch"
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    temperature: float = 1.0
    provenance: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not _is_list(self.labels) or not all(isinstance(label, str) for label in self.labels):
            raise ValueError(f"labels must be a list of names, got {self.labels!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        sides = tuple(self.image_size) if _is_list(self.image_size) else ()
        if len(sides) != 2 or not all(isinstance(side, numbers.Integral) and side > 0 for side in sides):
            raise ValueError(f"image_size must be (height, width) in pixels, got {self.image_size!r}")
        object.__setattr__(self, "image_size", tuple(int(side) for side in sides))
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.pixel_rule not in PIXEL_RULES:
            raise ValueError(f"pixel_rule must be one of {', '.join(PIXEL_RULES)}, got {self.pixel_rule!r}")
        if len(set(self.labels)) != len(self.labels) or not self.labels:
            raise ValueError(f"labels must be distinct and at least one, got {list(self.labels)}")
        if UNSURE in self.labels:
            raise ValueError(f"no label may be called {UNSURE!r}: it is the decision below the threshold")
        if self.task == "binary" and len(self.labels) != 2:
            raise ValueError(f"a binary model has two labels, got {list(self.labels)}")
        if not (_is_number(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a positive number, got {self.temperature!r}")
        if not isinstance(self.thresholds, Mapping):
            raise ValueError(f"thresholds must map labels to probabilities, got {self.thresholds!r}")
        for label, threshold in self.thresholds.items():
            if label not in self.labels:
                raise ValueError(f"threshold given for {label!r}, but the labels are {list(self.labels)}")
            if not (_is_number(threshold) and 0 <= threshold <= 1):
                raise ValueError(f"threshold of {label!r} must be in [0, 1], got {threshold!r}")
        if not isinstance(self.provenance, Mapping):
            raise ValueError(f"provenance must be a mapping of facts, got {self.provenance!r}")

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    def threshold(self, label: str) -> float:
        """The smallest probability at which `label` is decided (0.5 where none was fitted)."""
        return float(self.thresholds.get(label, 0.5))

    def decide(self, probabilities: Sequence[float]) -> str | tuple[str, ...]:
        """Turns one film's probabilities, in the order of `labels`, into a decision.

        Returns:
            For exclusive labels the most probable one if it reaches its threshold, else `"unsure"`; for
            multi-label models the tuple of labels that reach theirs.
        """
        if self.task not in DECIDING_TASKS:
            raise ValueError(f"{self.name!r} makes films; it decides nothing")
        if len(probabilities) != self.num_labels:
            raise ValueError(
                f"expected {self.num_labels} probabilities {list(self.labels)}, got {len(probabilities)}"
            )
        if self.task == "multilabel":
            pairs = zip(self.labels, probabilities, strict=True)
            return tuple(label for label, probability in pairs if probability >= self.threshold(label))
        best = max(range(self.num_labels), key=lambda index: probabilities[index])
        label = self.labels[best]
        return label if probabilities[best] >= self.threshold(label) else UNSURE

    def to_json(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps(_plain({"format": 1, **fields}), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Reads what `to_json` wrote. Raises ValueError, in one line, on anything else."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a model spec must be JSON: {error}") from None
        if not isinstance(fields, dict) or fields.pop("format", None) != 1:
            raise ValueError('a model spec must be a JSON object with "format": 1')
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) - known:
            raise ValueError(f"unknown fields in the model spec: {sorted(set(fields) - known)}")
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"incomplete model spec: {error}") from None

    @classmethod
    def read(cls, path) -> "ModelSpec":
        """Reads a spec.json. Errors name the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _plain(value):
    """JSON values only. A number that is not one (the score of a label without films) becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a spec holds JSON values only, got {type(value).__name__}")
