"""Which condition a film shows where it may show several, none, or be lateral; and how rare ones are made."""

import numpy as np
import pandas as pd
import pytest

from kxray.data import condition_films, thin_out


def films(**columns):
    count = len(next(iter(columns.values())))
    table = pd.DataFrame({"path": [f"/films/{k}.png" for k in range(count)], **columns})
    table["patient_id"] = [f"P{k}" for k in range(count)]
    return table


FINDINGS = films(
    Effusion=[1, 1, 1, 0, 0, 0],
    Mass=[0, 1, 0, 1, 0, 0],
    Hernia=[0, 0, 0, 0, 1, 0],
    Nodule=[0, 0, 0, 0, 0, 0],
)


def test_a_film_with_several_findings_shows_the_rarest():
    made = condition_films(FINDINGS)
    assert made.labels == ("Effusion", "Mass")
    assert made.names.tolist() == ["Effusion", "Mass", "Effusion", "Mass"]
    assert made.table["path"].tolist() == [f"/films/{k}.png" for k in range(4)]
    assert made.counts() == {"Effusion": 2, "Mass": 2} and len(made) == 4
    told = "; ".join(made.notes)
    assert "no film shows Nodule" in told and "2 films with none of Effusion, Mass are left out" in told
    assert "1 films with several labels count as the rarest of them (Mass 2, Effusion 3)" in told


def test_or_is_left_out():
    made = condition_films(FINDINGS, several="drop")
    assert made.names.tolist() == ["Effusion", "Effusion", "Mass"]
    assert made.table.index.tolist() == [0, 1, 2]
    assert made.table["path"].tolist() == ["/films/0.png", "/films/2.png", "/films/3.png"]


def test_no_finding_is_where_all_findings_are_known_to_be_absent():
    made = condition_films(FINDINGS, ["Mass"], normal=True)
    assert made.labels == ("Mass", "No Finding")
    assert made.table["path"].tolist() == ["/films/1.png", "/films/3.png", "/films/5.png"]
    unknown = FINDINGS.assign(Hernia=[0, 0, 0, 0, 1, np.nan])
    with pytest.raises(ValueError, match="no film shows No Finding"):
        condition_films(unknown, ["Mass", "No Finding"])


def test_lateral_films_are_left_out():
    made = condition_films(FINDINGS.assign(view=["frontal", "", "lateral", "lateral", "", ""]))
    assert made.table["path"].tolist() == ["/films/0.png", "/films/1.png"]
    assert "2 lateral films are left out" in made.notes


def test_class_folders_are_conditions_too():
    table = films(label=["bone", "no_bone", "bone", ""])
    made = condition_films(table)
    assert made.labels == ("bone", "no_bone") and made.classes.tolist() == [0, 1, 0]
    assert condition_films(table, ["no_bone", "bone"]).classes.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="no film shows metal"):
        condition_films(table, ["bone", "metal"])
    with pytest.raises(ValueError, match="made of finding columns"):
        condition_films(table, normal=True)


def test_other_findings_where_none_of_the_eight_is_there():
    assert condition_films(films(Hernia=[1, 0], Cyst=[0, 1])).labels == ("Hernia", "Cyst")
    both = films(Hernia=[1, 0], label=["left", "right"])
    assert condition_films(both).labels == ("left", "right")
    assert condition_films(both, ["Hernia"]).labels == ("Hernia",)


def test_a_condition_that_rarer_ones_take_all_films_of():
    table = films(Effusion=[1, 1, 1, 0], Mass=[1, 1, 0, 0], Nodule=[0, 0, 1, 0])
    made = condition_films(table)
    assert made.labels == ("Mass", "Nodule") and made.classes.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="Effusion: all of its films also show other labels"):
        condition_films(table, ["Effusion", "Mass", "Nodule"])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"labels": ["Fracture"]}, "no finding 'Fracture'; the findings are Effusion, Mass, Hernia, Nodule"),
        ({"labels": "Mass"}, "labels must be distinct names, got 'Mass'"),
        ({"labels": ["Mass", "Mass"]}, "labels must be distinct names"),
        ({"labels": ["Nodule", "Mass"]}, "no film shows Nodule; films of every condition are needed"),
        ({"several": "first"}, "several must be rarest or drop, got 'first'"),
    ],
)
def test_what_cannot_be_is_said(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        condition_films(FINDINGS, **given)


def test_a_table_without_findings_or_labels():
    with pytest.raises(ValueError, match="expected finding columns or a column 'label'"):
        condition_films(films(age=[50, 60]))


def imbalanced(mass=30):
    table = films(label=["Effusion"] * 60 + ["Mass"] * mass)
    parts = np.where(np.arange(60 + mass) % 3 == 2, "test", "train")
    return condition_films(table), parts


def test_rare_conditions_are_thinned_out_of_training_alone():
    made, parts = imbalanced()
    kept = thin_out(made, parts, ("Mass",), 8, seed=1)
    assert made.counts(kept & (parts == "train")) == {"Effusion": 40, "Mass": 5}
    assert kept[parts == "test"].all()
    np.testing.assert_array_equal(kept, thin_out(made, parts, ("Mass",), 8, seed=1))
    assert (kept != thin_out(made, parts, ("Mass",), 8, seed=2)).any()
    thinned = made.take(kept)
    assert thinned.labels == made.labels and len(thinned) == kept.sum()


def test_two_films_stay_and_none_is_made_up():
    made, parts = imbalanced()
    assert made.counts(thin_out(made, parts, ("Mass",), 1000) & (parts == "train"))["Mass"] == 2
    made, parts = imbalanced(mass=3)
    assert thin_out(made, parts, ("Mass",), 20).all()
    with pytest.raises(ValueError, match="unknown label 'Nodule'"):
        thin_out(made, parts, ("Nodule",), 20)
    with pytest.raises(ValueError, match="at least 1, got 0.5"):
        thin_out(made, parts, ("Mass",), 0.5)


def test_conditions_say_where_they_come_from():
    assert condition_films(FINDINGS).findings and condition_films(FINDINGS).take([0, 1]).findings
    assert not condition_films(films(label=["Mass", "Nodule"])).findings
