"""Kinds of values that parameters take, and how to parse them from text. Standard library only.

Each ``parse`` raises ``ValueError`` for an invalid text. Its message continues a sentence that begins with the
parameter: "The offset in the URL …".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from airflow_worker_insight.domain.limits import MAX_ID_LENGTH, MAX_INTEGER, MAX_NOTE_LENGTH

WORKER_ID = r"^[A-Za-z0-9._@:-]{1,64}$"
"""Pattern of the IDs that a worker may report."""


def is_worker_id(text: str) -> bool:
    """Return whether a worker can have this ID."""
    return re.fullmatch(WORKER_ID, text) is not None


@dataclass(frozen=True, slots=True)
class Text:
    """Any text that the database can store."""

    max_length: int = MAX_ID_LENGTH

    def parse(self, text: str) -> str:
        """Return the text."""
        if len(text) > self.max_length:
            raise ValueError(f"is longer than {self.max_length} characters")
        if "\0" in text:
            raise ValueError("contains a NUL character")
        return text


@dataclass(frozen=True, slots=True)
class WorkerId:
    """ID of a worker."""

    def parse(self, text: str) -> str:
        """Return the ID.

        :raises ValueError: if no worker can have it
        """
        if not is_worker_id(text):
            raise ValueError("is not a worker's ID: at most 64 characters from A-Z, a-z, 0-9 and ._@:-")
        return text


@dataclass(frozen=True, slots=True)
class Integer:
    """Whole number that fits the database's integer columns."""

    minimum: int

    def parse(self, text: str) -> int:
        """Return the number."""
        # Limit the digits first: int() of a megabyte of digits is slow.
        number = int(text) if re.fullmatch(r"-?[0-9]{1,10}", text) else None
        if number is None or not self.minimum <= number <= MAX_INTEGER:
            raise ValueError(f"is not a whole number from {self.minimum} on")
        return number


YEARS = range(1971, 9999)
"""Years from which days can be added and subtracted without leaving the calendar."""


@dataclass(frozen=True, slots=True)
class Time:
    """Date and time in ISO 8601; UTC without an offset."""

    def parse(self, text: str) -> datetime:
        """Return the time in UTC.

        :raises ValueError: if it is not a time, or too close to the ends of the calendar to add or subtract days
        """
        try:
            # Python 3.10 does not parse "Z".
            time = datetime.fromisoformat(text.replace("Z", "+00:00"))
            time = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
        except (ValueError, OverflowError):
            raise ValueError("is not a date and time, such as 2026-01-31 or 2026-01-31T08:00Z") from None
        if time.year not in YEARS:
            raise ValueError("is not within the years 1971 to 9998")
        return time


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several words."""

    values: tuple[str, ...]

    def parse(self, text: str) -> str:
        """Return the word."""
        if text not in self.values:
            raise ValueError(f"is not one of {', '.join(sorted(filter(None, self.values)))}")
        return text


@dataclass(frozen=True, slots=True)
class Choices(Choice):
    """One or several words.

    REST takes a repeated parameter, the command a list that is separated by commas, and the pages one word.
    """

    def parse_list(self, text: str) -> frozenset[str]:
        """Return the words of a list."""
        return frozenset(self.parse(word.strip()) for word in text.split(","))


@dataclass(frozen=True, slots=True)
class TryState:
    """One of Airflow's states of a task instance, which differ between its versions."""


@dataclass(frozen=True, slots=True)
class Label:
    """Label of a worker, written ``key=value``."""

    max_length: int = 320

    def parse(self, text: str) -> tuple[str, str]:
        """Return the key and the value."""
        Text(self.max_length).parse(text)
        key, separator, value = text.partition("=")
        if not key.strip() or not separator:
            raise ValueError("is not a label as key=value, such as zone=eu-1")
        return key.strip(), value.strip()


@dataclass(frozen=True, slots=True)
class Note:
    """A user's note on a decision: one line."""

    max_length: int = MAX_NOTE_LENGTH

    def parse(self, text: str) -> str:
        """Return the note with spaces for what cannot be printed, such as line ends and direction marks."""
        line = "".join(character if character.isprintable() else " " for character in text).strip()
        if len(line) > self.max_length:
            raise ValueError(f"is longer than {self.max_length} characters")
        return line


Kind = Text | WorkerId | Integer | Time | Choice | TryState | Label


@dataclass(frozen=True, slots=True)
class Parameter:
    """Declaration of a parameter: what REST, the command and the pages derive theirs from."""

    name: str
    meaning: str
    """One sentence for the reference, the OpenAPI document and the command's help."""
    kind: Kind
    rest: bool = True
    """Whether the REST API has it."""
    command: bool = True
    """Whether the command has it."""
