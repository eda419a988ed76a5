"""Slices by label: small labels together, none for a single one."""

from evaluation.preferences.slices import rows_by_label


def test_labels_with_few_rows_are_put_together():
    labels = ["big"] * 10 + ["few", "rare"] + ["many"] * 11
    assert rows_by_label(labels) == {"big": [*range(10)], "many": [*range(12, 23)], "other": [10, 11]}


def test_one_label_makes_no_slice():
    assert rows_by_label(["a"] * 30) == {} and rows_by_label(["a", "b"]) == {} and rows_by_label([]) == {}
