"""Clean names, labels and other text from users and hosts for storage and transport.

Nothing is escaped here: pages escape markup themselves. Only characters that a database or JSON rejects are removed,
and lengths are bounded.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


LABEL_VALUE_LENGTH = 128
"""Maximum length of a label's value; Kubernetes node and namespace names fit."""

MAX_LABELS = 32
"""Maximum number of labels of a worker; a report with more is rejected."""

LABELS_SIZE = 1024
"""Maximum size in bytes of all labels as JSON in ASCII.

With them and the longest names a report stays below its limit of 8 KiB.
"""

_WORD_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
LABEL_KEY = "[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
"""Pattern of a label's key."""


def clean(value: object, length: int) -> str:
    """Return ``value`` as one line of at most ``length`` characters; empty if not a string."""
    if not isinstance(value, str):
        return ""
    # Cut first, so that a value of many megabytes does not slow down the task.
    line = value[: 2 * length]
    if not line.isprintable():
        line = "".join(" " if _is_forbidden(character) else character for character in line)
    return line.strip()[:length].rstrip()


def slug(value: object, length: int) -> str:
    """Return the ``[A-Za-z0-9._-]`` characters of ``value``, at most ``length``, maybe none."""
    return "".join(character for character in clean(value, length) if character in _WORD_CHARACTERS)


def parse_labels(setting: object) -> dict[str, str]:
    """Parse labels from a setting such as ``region=eu-west-1, zone=b``.

    Commas or line breaks separate them. If a key occurs twice, the last value counts. Invalid items are ignored: a
    typing error in a setting must not cost a task its report.
    """
    if not isinstance(setting, str):
        return {}
    labels: dict[str, str] = {}
    for item in re.split(r"[,\n]", setting[: 4 * LABELS_SIZE]):
        key, _, raw_value = item.partition("=")
        key = key.strip()
        value = clean(raw_value, LABEL_VALUE_LENGTH + 1)
        if re.fullmatch(LABEL_KEY, key) and 0 < len(value) <= LABEL_VALUE_LENGTH:
            labels[key] = value
    return labels


def bounded_labels(*sources: Mapping[str, str]) -> dict[str, str]:
    """Merge labels within the limits; the first source of a key wins.

    Labels beyond :data:`MAX_LABELS` or :data:`LABELS_SIZE` are dropped.
    """
    merged: dict[str, str] = {}
    size = 2
    for source in sources:
        for key, value in source.items():
            size_with = size + len(json.dumps(key)) + len(json.dumps(value)) + 4
            if key not in merged and size_with <= LABELS_SIZE and len(merged) < MAX_LABELS:
                merged[key] = value
                size = size_with
    return merged


FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that names, labels and notes may not contain.

They are control characters (PostgreSQL rejects NUL), format characters (some change the direction of writing, so that
one name looks like another), lone surrogates and line ends.
"""


def is_clean(text: str) -> bool:
    """Return whether a text has no character of the categories in :data:`FORBIDDEN_CATEGORIES`."""
    return text.isprintable() or not any(map(_is_forbidden, text))


def _is_forbidden(character: str) -> bool:
    return unicodedata.category(character) in FORBIDDEN_CATEGORIES


KIND_LENGTH = 32
NAME_LENGTH = 250


def executor_name(executor: object) -> str:
    """Return the class name of an executor as ``[core] executor`` or a task names it.

    Takes a class name, a dotted path, ``alias:dotted.path``, a list of those (the first is the default executor) and
    the teams of Airflow 3 (``LocalExecutor;team=CeleryExecutor``). Returns an empty string if there is no name.
    """
    if not isinstance(executor, str):
        return ""
    first = re.split(r"[,;]", executor[:1000], maxsplit=1)[0]
    path = first.rpartition("=")[2].rpartition(":")[2]
    return slug(path.rpartition(".")[2], KIND_LENGTH)


# Airflow's LocalExecutor is one worker, "local@HOST", for all of its processes. An executor with several local workers
# gives each another name, and its processes get a variable with the name and the scheduler. A task may start another
# Airflow, which inherits the variable but belongs to none of these workers.
SINGLE_LOCAL_NAME = "local"


def is_named_local(kind: str, engine_name: str | None) -> bool:
    """Return whether a worker is one of several that a scheduler has on its machine."""
    return kind == "local" and engine_name is not None and not engine_name.startswith(f"{SINGLE_LOCAL_NAME}@")


HOSTNAME_LENGTH = 255


def short_host(hostname: str) -> str:
    """Return the first label of a host name; an IP address is returned whole.

    After a failed DNS lookup a host may report only this part.
    """
    name = hostname.strip().lower().rstrip(".")
    first = name.partition(".")[0]
    return name if first.isdecimal() or ":" in name else first


def is_same_host(name: str, other_name: str) -> bool:
    """Return whether two host names may be the same host's, with and without its domain."""
    normalized, other_normalized = name.strip().lower().rstrip("."), other_name.strip().lower().rstrip(".")
    return normalized == other_normalized or (
        short_host(name) == short_host(other_name)
        and (normalized == short_host(name) or other_normalized == short_host(other_name))
    )
