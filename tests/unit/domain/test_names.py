"""What becomes of text that others wrote."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.domain.names import LABELS_SIZE, bounded_labels, clean, parse_labels, slug

any_text = st.text(st.characters(codec=None, categories=None), max_size=600)


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        ("  w1@host ", "w1@host"),
        ("<b>w1</b> & 'co'", "<b>w1</b> & 'co'"),  # escaping is for the page
        ("👩💻 büro", "👩💻 büro"),
        # Format characters: two emojis joined, and a name that reads backwards.
        ("👩\u200d💻 büro", "👩 💻 büro"),
        ("w1\u202e1w", "w1 1w"),
        ("a\x00b\nc\x9fd\u2028e\ud800f", "a b c d e f"),
        ("x" * 300, "x" * 20),
        ("x" * 19 + " y", "x" * 19),
        ("\x00", ""),
        ("", ""),
        (None, ""),
        (7, ""),
        (b"bytes", ""),
    ],
)
def test_clean(value: object, cleaned: str) -> None:
    assert clean(value, 20) == cleaned


@given(any_text, st.integers(1, 40))
def test_clean_text_can_be_stored(value: str, length: int) -> None:
    cleaned = clean(value, length)
    assert len(cleaned) <= length
    assert "\x00" not in cleaned.encode().decode()
    assert cleaned.splitlines() in ([], [cleaned])
    assert clean(cleaned, length) == cleaned


@given(any_text)
def test_word_has_only_safe_characters(value: str) -> None:
    assert set(slug(value, 32)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.mark.parametrize(
    ("setting", "labels"),
    [
        ("region=eu-west-1,zone=b", {"region": "eu-west-1", "zone": "b"}),
        (" region = eu west , zone=b,\n rack=7 ", {"region": "eu west", "zone": "b", "rack": "7"}),
        ("a=1,a=2", {"a": "2"}),
        ("query=x=y", {"query": "x=y"}),
        ("topology.kubernetes.io/zone=b", {"topology.kubernetes.io/zone": "b"}),
        ("team=<i>data</i> 🚀", {"team": "<i>data</i> 🚀"}),
        ("no-value=,=no-key,neither,,k y=1,é=1,-x=1," + "k" * 64 + "=1,long=" + "v" * 129 + ",ok=1", {"ok": "1"}),
        ("", {}),
        (None, {}),
        ({"region": "eu"}, {}),
    ],
)
def test_parse_labels(setting: object, labels: dict[str, str]) -> None:
    assert parse_labels(setting) == labels


def test_a_settings_label_replaces_what_was_found() -> None:
    assert bounded_labels({"node": "mine"}, {"node": "found", "pod": "p"}) == {"node": "mine", "pod": "p"}


@given(st.dictionaries(any_text, any_text, max_size=30))
def test_labels_are_bounded(labels: dict[str, str]) -> None:
    bounded = bounded_labels(labels)
    assert len(json.dumps(bounded)) <= LABELS_SIZE
    assert bounded.items() <= labels.items()


def test_one_label_too_long_costs_only_itself() -> None:
    assert bounded_labels({"a": "1", "long": "v" * LABELS_SIZE, "b": "2"}) == {"a": "1", "b": "2"}
