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
    """Raised when no finding has the requested ID, or the user may not see it; the message says so."""

    status = 404

    def __init__(self) -> None:
        super().__init__("There is no finding with this ID that you may see. Old findings are removed in time.")


class InvalidRequestError(RequestError):
    """Raised when a request cannot be carried out as sent; the message says why."""

    status = 422
