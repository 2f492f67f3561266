"""What a classifier recipe fixes."""

import dataclasses
from collections.abc import Callable

from kxray.io.film import MIN_SIDE

# Independent films of a class, or with a finding and without it, that it takes to train, validate and test.
SMALLEST_CLASS = 3


@dataclasses.dataclass(frozen=True)
class ClassifierTask:
    """What a recipe fixes: which model answers which question, and how it is trained.

    Args:
        name: of the recipe and of the exported model.
        model: a name of `kxray.models`.
        kind: "binary" (one sigmoid unit), "multiclass" (softmax) or "multilabel" (one sigmoid a finding), as
            in `kxray.ModelSpec.task`.
        label_column: manifest column with the label; `label` is used where a source has only that. Of no
            meaning for "multilabel", whose labels are manifest columns themselves.
        phantom_kind: "thorax" or "fillet", what is generated without --data.
        image_size: (height, width) of the network's input.
        build: function (spec) -> keras.Model with its starting weights.
        optimizer: function (steps an epoch, the model to be trained) -> keras optimizer.
        augment: function () -> the augmenting layers, in order.
        labels: the classes or findings, in the order of the spec; none for those that the source has.
        min_side: smallest side of a film in pixels.
        test_time_flips: over which views test films are also scored: "none", "horizontal" or "dihedral".
        frozen_features: whether all that is trained comes after the model's layer "features", (N, F), so
            that features need to be computed only once.
        views: augmented views of each film that are kept then; 0 trains on the films as they are.
        standardize: whether features are brought to mean 0 and deviation 1 then, by the training films.
        told: function (spec) -> what `--dry-run` says of the model.
        preferred: findings that are asked for, of those that a source has, where `labels` are none; of no
            meaning where it has none of them.
        phantom_poses: how generated chests lie on their films, see `kxray.data.phantom.mix.Mix`.
        sensitivity: share of the films with a finding that its threshold is to find; None: the threshold of
            the largest sensitivity + specificity.
        masking: `training.masking.Masking`, what boxes and aligned films give the model, or None.
    """

    name: str
    model: str
    kind: str
    label_column: str
    phantom_kind: str
    image_size: tuple[int, int]
    build: Callable
    optimizer: Callable
    augment: Callable
    labels: tuple[str, ...] = ()
    min_side: int = MIN_SIDE
    test_time_flips: str = "none"
    frozen_features: bool = False
    views: int = 0
    standardize: bool = False
    told: Callable | None = None
    preferred: tuple[str, ...] = ()
    phantom_poses: str = "natural"
    sensitivity: float | None = None
    masking: object | None = None

    def for_films(self, table) -> "ClassifierTask":
        """This task with the labels that a table of films has, where the recipe fixes none."""
        labels = self.labels or tuple(sorted(set(table[self.label_column])))
        if len(labels) < 2:
            raise ValueError(f"every film is labelled {labels[0]!r}; a classifier needs two labels or more")
        return dataclasses.replace(self, labels=labels)

    @property
    def multilabel(self) -> bool:
        return self.kind == "multilabel"

    @property
    def stratified_by(self):
        """The column or columns by which films are dealt to the parts of a split."""
        return list(self.labels) if self.multilabel else self.label_column

    @property
    def spec(self):
        """The `kxray.ModelSpec` of the untrained model, once the labels are known."""
        from kxray.spec import ModelSpec

        return ModelSpec(self.model, self.labels, self.kind, self.image_size)
