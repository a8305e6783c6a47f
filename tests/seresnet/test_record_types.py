"""What a record's values may be: plain annotations, lists of lists of whole numbers, and numbers that fit into 64 bits."""

from typing import Any

import pytest

from seresnet.record_types import conforms


@pytest.mark.parametrize(
    ("value", "is_right"),
    [
        ([[1, 2], [0, 2**63 - 1]], True),
        ([[-(2**63) + 1]], True),
        ([[]], True),
        ([], True),
        ([[2**63]], False),
        ([[-(2**63)]], False),
        ([[1, True]], False),
        ([[1, 1.0]], False),
        ([[1, None]], False),
        ([(1, 2)], False),
        ([1], False),
        ("12", False),
    ],
)
def test_a_confusion_matrix_is_lists_of_whole_numbers_that_fit(value: Any, is_right: bool) -> None:
    assert conforms(value, list[list[int]]) is is_right
