"""What REST, the command and the pages make of a parameter's text."""

from __future__ import annotations

import pytest

from airflow_worker_insight.domain.parameters import Note


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (" disk fails ", "disk fails"),
        ("two\nlines", "two lines"),
        ("a\u202eb\x00c", "a b c"),
        ("", ""),
        ("n" * 500 + "\n", "n" * 500),
    ],
)
def test_note_is_one_printable_line(text: str, note: str) -> None:
    assert Note().parse(text) == note


def test_long_note_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 500 characters"):
        Note().parse("n" * 501)
