"""Warnings about patients in several splits, at several sites, or in two spellings."""

from __future__ import annotations

import pandas as pd
import pytest

from raysim.data.patient_warnings import patient_warnings


def warnings_of(sites: str, splits: list[str], patients: list[str | None], column: str = "patient") -> list[str]:
    table = pd.DataFrame({"site": [*sites], "split": splits, column: patients}, dtype="string")
    return list(patient_warnings(table))


def test_a_table_without_problems_has_no_warning() -> None:
    assert warnings_of("aabb", ["train", "test"] * 2, ["1", "2", "3", None]) == []
    assert warnings_of("ab", ["train", "test"], ["1", "1"], column="scanner") == []


def test_patients_in_several_splits() -> None:
    (message,) = warnings_of("a" * 14, ["train"] * 7 + ["test"] * 7, [*"bcdefgh"] * 2, column="PatientID")
    assert message.startswith(
        "patients (column 'PatientID') in more than one of train, val and test: 7, b of a (train, test), c of a"
    )
    assert message.endswith("and 2 more; keep each patient in one split, otherwise the scores are too high")
    assert warnings_of("aa", ["train", "unlabelled"], ["1", "1"]) == []


def test_patients_at_several_sites() -> None:
    (message,) = warnings_of("abb", ["train", "test", "test"], ["p1", "p1", "p2"])
    assert message == (
        "patients (column 'patient') at more than one site: 1, p1 (a, b); keep each patient at one site, otherwise the "
        "scores are too high. If each site has its own numbers, add the site to the identifiers"
    )


@pytest.mark.parametrize(("one", "other"), [("P1", "p1"), ("01", "1"), ("1.0", "1"), ("p_1", "p-1")])
def test_patients_with_two_spellings(one: str, other: str) -> None:
    (message,) = warnings_of("aaa", ["train", "test", "val"], [one, other, "p27"])
    start = "patients (column 'patient') with nearly equal identifiers, each used as a separate patient"
    assert message.startswith(start)
    assert repr(one) in message
    assert repr(other) in message
