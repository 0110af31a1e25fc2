"""Names, labels and other text that people and hosts wrote, made fit to be stored and sent.

Nothing is escaped here: what is markup to a page is for the page to escape. Only what no database or JSON
document takes is removed, and lengths are bounded.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


LABEL_VALUE_LENGTH = 128
"""Characters of a label's value: a Kubernetes node or namespace name fits."""

MAX_LABELS = 32
"""Labels of a worker: a report with more is not believed at all."""

LABELS_SIZE = 1024
"""Bytes of all labels as JSON in ASCII: with them and the longest names a report stays below its 8 KiB."""

_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_LABEL_KEY = "[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"


def clean(value: object, length: int) -> str:
    """Return ``value`` as one line of at most ``length`` characters; empty where it is no text."""
    if not isinstance(value, str):
        return ""
    # Cut first: a value of many megabytes shall not cost the task anything.
    line = value[: 2 * length]
    if not line.isprintable():
        line = "".join(" " if _is_unfit(character) else character for character in line)
    return line.strip()[:length].rstrip()


def word(value: object, length: int) -> str:
    """Return the characters of ``value`` that are ``[A-Za-z0-9._-]``, at most ``length``, possibly none."""
    return "".join(character for character in clean(value, length) if character in _WORD)


def parse_labels(setting: object) -> dict[str, str]:
    """Read labels from a setting such as ``region=eu-west-1, zone=b`` (commas or line breaks between them).

    Of two with the same key the last one counts. An item that is no label is ignored: a typing error in a
    setting must not cost a task its report.
    """
    if not isinstance(setting, str):
        return {}
    labels: dict[str, str] = {}
    for item in re.split(r"[,\n]", setting[: 4 * LABELS_SIZE]):
        key, _, raw = item.partition("=")
        key = key.strip()
        value = clean(raw, LABEL_VALUE_LENGTH + 1)
        if re.fullmatch(_LABEL_KEY, key) and 0 < len(value) <= LABEL_VALUE_LENGTH:
            labels[key] = value
    return labels


def bounded_labels(*sources: Mapping[str, str]) -> dict[str, str]:
    """Join labels, of equal keys the first source's, as long as they are few and small enough."""
    joined: dict[str, str] = {}
    size = 2
    for source in sources:
        for key, value in source.items():
            size_with = size + len(json.dumps(key)) + len(json.dumps(value)) + 4
            if key not in joined and size_with <= LABELS_SIZE and len(joined) < MAX_LABELS:
                joined[key] = value
                size = size_with
    return joined


UNFIT = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that no name, label or note may hold: control characters (PostgreSQL refuses NUL), format
characters (some change the direction of writing: one name looks like another), lone surrogates, line ends."""


def is_fit(text: str) -> bool:
    """Return whether no character of a text is of the categories :data:`UNFIT`."""
    return text.isprintable() or not any(map(_is_unfit, text))


def _is_unfit(character: str) -> bool:
    return unicodedata.category(character) in UNFIT


KIND_LENGTH = 32
NAME_LENGTH = 250


def executor_name(executor: object) -> str:
    """Return the class name of an executor as ``[core] executor`` or a task names it; empty for nothing.

    Takes a class name, a dotted path, ``alias:dotted.path``, a list of those (the first is the default
    executor) and the teams of Airflow 3 (``LocalExecutor;team=CeleryExecutor``).
    """
    if not isinstance(executor, str):
        return ""
    first = re.split(r"[,;]", executor[:1000], maxsplit=1)[0]
    path = first.rpartition("=")[2].rpartition(":")[2]
    return word(path.rpartition(".")[2], KIND_LENGTH)


# "local@HOST" is the one worker that all processes of Airflow's LocalExecutor are. An executor that has several gives
# each another name, and its processes a variable that says which of them they belong to, and to which scheduler: a task
# may start another Airflow, which inherits the variable and is none of them.
PLAIN_LOCAL = "local"


def is_named_local(kind: str, engine_name: str | None) -> bool:
    """Return whether a worker is one of several that a scheduler has on its machine."""
    return kind == "local" and engine_name is not None and not engine_name.startswith(f"{PLAIN_LOCAL}@")


HOSTNAME_LENGTH = 255


def short_host(hostname: str) -> str:
    """Return the first part of a host's name, which a failed DNS lookup leaves; an address is returned whole."""
    name = hostname.strip().lower().rstrip(".")
    first = name.partition(".")[0]
    return name if first.isdecimal() or ":" in name else first


def are_one_host(one: str, other: str) -> bool:
    """Return whether two names of hosts may be the same one's: with and without its domain."""
    first, second = one.strip().lower().rstrip("."), other.strip().lower().rstrip(".")
    return first == second or (
        short_host(one) == short_host(other) and (first == short_host(one) or second == short_host(other))
    )
