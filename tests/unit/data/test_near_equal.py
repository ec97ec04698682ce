"""Names that are easily mistaken for each other are found; others are not."""

from __future__ import annotations

from raysim.data.near_equal import near_equal_names, near_equal_sites_warning

CYRILLIC = "\u0412\u0435rn"  # the first two letters look like Be


def test_names_that_differ_only_in_what_readers_overlook() -> None:
    names = [
        "Basel",
        "basel",
        "Z\u00fcrich",
        "Zurich",
        "Bern",
        CYRILLIC,
        "site-1",
        "site 01",
        "1",
        "01",
        "1.0",
        "Genf\u200b",
        "Genf",
    ]
    assert near_equal_names(names) == [
        ("01", "1", "1.0"),
        ("Basel", "basel"),
        ("Bern", CYRILLIC),
        ("Genf", "Genf\u200b"),
        ("Zurich", "Z\u00fcrich"),
        ("site 01", "site-1"),
    ]


def test_digits_and_letters_that_look_alike() -> None:
    assert near_equal_names(["O1", "01"]) == [("01", "O1")]
    assert near_equal_names(["l1", "I1"]) == [("I1", "l1")]
    assert near_equal_names(["A  B", "A B", "A B "]) == [("A  B", "A B", "A B ")]
    assert near_equal_names(["Z\u00fcrich", "Zu\u0308rich"]) == [("Zu\u0308rich", "Z\u00fcrich")]
    assert near_equal_names(["1,0", "1", "2"]) == [("1", "1,0")]
    assert near_equal_names(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")) == []


def test_different_names_are_not_grouped() -> None:
    assert near_equal_names(["site-1", "site-10", "site-11", "1.05", "1.5", "-1", "1", "+", "-", "a", "b"]) == []
    assert near_equal_sites_warning(["a", "b"]) is None


def test_the_warning_about_sites() -> None:
    assert "'Basel' and 'basel'; if they are one hospital" in str(near_equal_sites_warning(["basel", "Basel", "Bern"]))


def test_names_in_different_unicode_forms_are_shown_with_escapes() -> None:
    warning = str(near_equal_sites_warning(["Z\u00fcrich", "Zu\u0308rich"]))
    assert "'Zu\\u0308rich' and 'Z\u00fcrich'; if they are one hospital" in warning
