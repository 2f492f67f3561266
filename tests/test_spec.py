"""The contract that travels with a model: what it accepts, decides, writes and refuses to read."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kxray.spec import UNSURE, ModelSpec

BINARY = dict(name="view_cnn", labels=("frontal", "lateral"), task="binary", image_size=(64, 64))

names = st.text(min_size=1, max_size=12).filter(lambda name: name != UNSURE)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def specs(draw):
    task = draw(st.sampled_from(["binary", "multiclass", "multilabel"]))
    low, high = (2, 2) if task == "binary" else (1, 5)
    labels = draw(st.lists(names, min_size=low, max_size=high, unique=True))
    thresholds = st.dictionaries(st.sampled_from(labels), st.floats(0, 1), max_size=len(labels))
    return ModelSpec(
        name=draw(names),
        labels=tuple(labels),
        task=task,
        image_size=(draw(st.integers(1, 4096)), draw(st.integers(1, 4096))),
        thresholds=draw(thresholds),
        temperature=draw(st.floats(1e-3, 1e3)),
        provenance=draw(st.dictionaries(st.text(max_size=5), plain, max_size=4)),
    )


@given(specs())
def test_json_round_trip(spec):
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert isinstance(again.labels, tuple) and isinstance(again.image_size, tuple)


def test_numpy_numbers_are_written_as_numbers():
    spec = ModelSpec(**BINARY, thresholds={"lateral": np.float32(0.5)}, provenance={"films": np.int64(3)})
    assert ModelSpec.from_json(spec.to_json()).provenance == {"films": 3}


def test_an_undefined_score_is_still_json_for_every_reader():
    text = ModelSpec(**BINARY, provenance={"auroc": {"value": math.nan, "low": -math.inf}}).to_json()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(text, parse_constant=refuse)["provenance"] == {"auroc": {"value": None, "low": None}}


def test_only_json_is_written():
    with pytest.raises(TypeError, match="JSON values only, got set"):
        ModelSpec(**BINARY, provenance={"films": {1}}).to_json()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"task": "regression"},
            "task must be one of binary, multiclass, multilabel, generator, counterfactual, autoencoder, got "
            "'regression'",
        ),
        ({"pixel_rule": "raw"}, "pixel_rule must be one of unit_stretch, got 'raw'"),
        ({"labels": ()}, "labels must be distinct and at least one"),
        ({"labels": ("a", "a")}, "labels must be distinct"),
        ({"labels": "ab"}, "labels must be a list of names, got 'ab'"),
        ({"labels": (1, 2)}, "labels must be a list of names"),
        ({"labels": ("a", "b", "c")}, "a binary model has two labels"),
        ({"labels": ("a",)}, "a binary model has two labels"),
        ({"image_size": (64,)}, r"image_size must be \(height, width\)"),
        ({"image_size": (64, 64, 1)}, r"image_size must be \(height, width\)"),
        ({"image_size": (0, 64)}, r"image_size must be \(height, width\)"),
        ({"image_size": 64}, r"image_size must be \(height, width\)"),
        ({"image_size": (64.5, 64)}, r"image_size must be \(height, width\)"),
        ({"image_size": (math.inf, 64)}, r"image_size must be \(height, width\)"),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"temperature": -1.0}, "temperature must be a positive number"),
        ({"temperature": math.nan}, "temperature must be a positive number"),
        ({"temperature": math.inf}, "temperature must be a positive number"),
        ({"temperature": "warm"}, "temperature must be a positive number, got 'warm'"),
        ({"thresholds": {"oblique": 0.5}}, "threshold given for 'oblique', but the labels are"),
        ({"thresholds": {"lateral": 1.5}}, r"threshold of 'lateral' must be in \[0, 1\], got 1.5"),
        ({"thresholds": {"lateral": math.nan}}, r"must be in \[0, 1\], got nan"),
        ({"thresholds": {"lateral": "high"}}, r"must be in \[0, 1\], got 'high'"),
        ({"thresholds": [0.5, 0.5]}, "thresholds must map labels to probabilities"),
        ({"provenance": ["films"]}, "provenance must be a mapping"),
    ],
)
def test_every_field_is_checked(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModelSpec(**{**BINARY, **changed})


def test_a_binary_decision_waits_for_its_threshold():
    spec = ModelSpec(**BINARY, thresholds={"lateral": 0.9})
    assert spec.decide([0.6, 0.4]) == "frontal", "0.5 where none was fitted"
    assert spec.decide([0.2, 0.8]) == UNSURE == "unsure"
    assert spec.decide([0.1, 0.9]) == "lateral", "the threshold itself is enough"
    assert spec.decide([0.5, 0.5]) == "frontal", "the first of equals"
    assert (spec.threshold("frontal"), spec.threshold("lateral")) == (0.5, 0.9)


def test_a_multiclass_decision_is_the_likeliest_or_none():
    spec = ModelSpec(
        name="transfer", labels=("a", "b", "c"), task="multiclass", image_size=(8, 8), thresholds={"a": 0.3}
    )
    assert spec.decide([0.4, 0.3, 0.3]) == "a"
    assert spec.decide([0.3, 0.4, 0.3]) == "unsure", "b needs 0.5"
    assert spec.decide([0.1, 0.1, 0.8]) == "c"


def test_multilabel_decisions_are_independent():
    spec = ModelSpec(
        name="masked_densenet", labels=("Mass", "Nodule"), task="multilabel", image_size=(8, 8),
        thresholds={"Nodule": 0.2},
    )  # fmt: skip
    assert spec.decide([0.5, 0.2]) == ("Mass", "Nodule")
    assert spec.decide([0.49, 0.19]) == ()
    assert spec.decide([0.1, 0.9]) == ("Nodule",)


def test_a_generator_decides_nothing():
    spec = ModelSpec(name="attention_cgan", labels=("Mass",), task="generator", image_size=(64, 64))
    assert ModelSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match="'attention_cgan' makes films; it decides nothing"):
        spec.decide([1.0])


def test_a_decision_needs_one_probability_a_label():
    with pytest.raises(ValueError, match=r"expected 2 probabilities \['frontal', 'lateral'\], got 1"):
        ModelSpec(**BINARY).decide([0.7])


GARBAGE = [
    "", "nonsense", "null", "3", "[]", '"text"', "{}", '{"format": 2}', '{"format": 1}', "[" * 100_000,
    '{"format": 1, "name": "x", "labels": null, "task": "binary", "image_size": [1, 1]}',
    '{"format": 1, "name": "x", "labels": [["a"], ["b"]], "task": "binary", "image_size": [1, 1]}',
    '{"format": 1, "name": "x", "labels": ["a", "b"], "task": "binary", "image_size": [1e400, 1]}',
    '{"format": 1, "name": "x", "labels": ["a", "b"], "task": ["binary"], "image_size": [1, 1]}',
    '{"format": 1, "name": "x", "labels": ["a", "b"], "task": "binary", "image_size": "aa"}',
    '{"format": 1, "name": "x", "labels": ["a", "b"], "task": "binary", "image_size": [1, 1], "colour": 1}',
]  # fmt: skip


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: text[:40] or "empty")
def test_garbage_is_refused_in_one_line(text):
    with pytest.raises(ValueError) as refused:
        ModelSpec.from_json(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@given(st.dictionaries(st.sampled_from([*BINARY, "thresholds", "temperature", "provenance"]), plain))
def test_any_json_object_is_read_or_refused(fields):
    complete = {**json.loads(ModelSpec(**BINARY).to_json()), **fields}
    try:
        spec = ModelSpec.from_json(json.dumps(complete))
    except ValueError as error:
        assert "\n" not in str(error).replace("\\n", "")
    else:
        assert ModelSpec.from_json(spec.to_json()) == spec


def test_reading_names_the_file(tmp_path):
    path = tmp_path / "spec.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="spec.json: "):
        ModelSpec.read(path)
    path.write_text(ModelSpec(**BINARY).to_json())
    assert ModelSpec.read(path) == ModelSpec(**BINARY)
    with pytest.raises(FileNotFoundError):
        ModelSpec.read(tmp_path / "absent.json")
