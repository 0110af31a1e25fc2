"""Errors that answer a request, independent of the web framework."""

from __future__ import annotations


class RequestError(Exception):
    """Raised to answer a request with an error; the message is for the user."""

    status: int
    """The HTTP status of the answer."""


class WorkerNotFoundError(RequestError):
    """Raised when no worker has the requested ID; the message says so."""

    status = 404

    def __init__(self) -> None:
        super().__init__(
            "No worker with this ID was recorded. An ID that stands for a host is recorded when the Dag run of its "
            "first try has ended."
        )


class FindingNotFoundError(RequestError):
    """Raised when no finding that the reader may see has the requested ID; the message says so."""

    status = 404

    def __init__(self) -> None:
        super().__init__("No finding has this ID, or it is about a task of a Dag that you may not see.")


class InvalidRequestError(RequestError):
    """Raised when a request cannot be carried out as sent; the message says why."""

    status = 422
