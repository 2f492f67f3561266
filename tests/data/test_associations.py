import numpy as np
import pandas as pd
import pytest

from kxray.data import associations
from kxray.data.associations import association, cramers_v, metadata_columns, thirds


def test_v_of_tables_worked_out_by_hand():
    assert cramers_v([[10, 0], [0, 10]]) == pytest.approx(1.0)
    assert cramers_v([[50, 50], [50, 50]]) == 0.0
    # n = 80: chi-square 20, phi^2 1/4 less 1/79; two rows less 1/79, less one.
    assert cramers_v([[30, 10], [10, 30]]) == pytest.approx(np.sqrt((1 / 4 - 1 / 79) / (1 - 1 / 79)))
    assert cramers_v([[30, 10, 0], [10, 30, 0]]) == cramers_v([[30, 10], [10, 30]])
    assert np.isnan(cramers_v([[5, 5]])) and np.isnan(cramers_v([[5, 0], [5, 0]]))
    with pytest.raises(ValueError, match=r"counts \(R, C\) from 0"):
        cramers_v([1, 2])


def test_it_agrees_with_scipy_where_the_correction_is_taken_off():
    from scipy.stats.contingency import association as plain

    counts = np.array([[20, 7, 3], [5, 18, 9]])
    n, r, c = counts.sum(), 2, 3
    phi = plain(counts, method="cramer") ** 2 * (min(r, c) - 1)
    corrected = max(0, phi - (r - 1) * (c - 1) / (n - 1))
    least = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    assert cramers_v(counts) == pytest.approx(np.sqrt(corrected / least))


def test_what_tells_the_class_is_told_from_what_does_not():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(["a", "b"], 60))
    told = association(labels, np.where(labels == "a", "8", "16"), resamples=300)
    assert told["v"] == pytest.approx(1.0) and told["low"] > 0.95 and told["p"] == pytest.approx(1 / 301)
    assert told["labels"] == ["a", "b"] and sorted(told["values"]) == ["16", "8"]
    counts = np.array(told["counts"])
    assert counts.sum() == told["films"] == 120 and counts[told["values"].index("8")].tolist() == [60, 0]
    free = association(labels, rng.integers(0, 3, 120), resamples=300)
    assert free["v"] < 0.2 and free["low"] == 0 and free["p"] > 0.02


def test_chance_alone_seldom_counts_even_with_patients_of_several_films():
    p_values, lows = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        patients = np.repeat(np.arange(30), 4)
        # Class and property are each the patient's: 120 films tell no more than 30.
        labels, values = rng.integers(0, 2, 30)[patients], rng.integers(0, 2, 30)[patients]
        if len(set(values)) > 1:
            found = association(labels, values, patients, resamples=199, seed=seed)
            p_values.append(found["p"]), lows.append(found["low"])
    assert np.mean(np.array(p_values) <= 0.05) <= 0.12
    assert np.mean(np.array(lows) > 0.1) <= 0.1
    # Patients with films of both classes hand them on in order.
    mixed = association(np.tile(["a", "b"], 30), np.tile(["x", "y"], 30), patients[:60], resamples=99)
    assert mixed["v"] == pytest.approx(1.0) and 0 < mixed["p"] <= 1


def test_nothing_to_compare_is_undefined():
    found = association(["a", "a"], ["x", "y"])
    assert np.isnan([found[key] for key in ("v", "low", "high", "p")]).all() and found["films"] == 2
    with pytest.raises(ValueError, match="one label and one value a film"):
        association(["a", "b"], ["x"])


def test_columns_of_few_values_are_taken_and_others_left():
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(60)],
            "patient_id": [str(i) for i in range(60)],
            "label": ["a", "b"] * 30,
            "split": ["train", "test"] * 30,
            "view": ["frontal"] * 58 + ["lateral", ""],
            "position": ["PA"] * 30 + ["AP"] * 30,
            "age": np.r_[np.arange(20.0, 79.0), np.nan],
            "accession": [f"x{i}" for i in range(60)],
            "hospital": ["h"] * 60,
            "Mass": [0.0, 1.0] * 30,
            "follow_up": [float(i % 3) for i in range(60)],
        }
    )
    found = metadata_columns(table, "label")
    assert list(found) == ["view", "position", "age", "follow_up"]
    assert set(found["view"]) == {"frontal", "lateral", "unknown"} and set(found["follow_up"]) == set("012")
    names, counts = np.unique(found["age"], return_counts=True)
    assert set(names) == {"up to 39.3", "39.3 to 58.7", "above 58.7", "unknown"} and counts.min() == 1
    # A view is its position in other words.
    assert "position" not in metadata_columns(table, "view")


def test_thirds_keep_what_has_three_values_or_fewer():
    assert thirds([1, 2, 2, 1]).tolist() == ["1", "2", "2", "1"]
    assert thirds([0.5, np.nan]).tolist() == ["0.5", associations.UNKNOWN]
    names, counts = np.unique(thirds(np.arange(90)), return_counts=True)
    assert len(names) == 3 and counts.tolist() == [30, 30, 30]
