"""Request HTTP servers by turns, and keep how long each took to answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Client:
    """One connection to a server, which stays open."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.update(headers or {})

    def get(self, path: str, timeout: float = 300) -> tuple[float, requests.Response]:
        """Request a path; return the milliseconds until the whole answer arrived, and the answer."""
        request = self._session.prepare_request(requests.Request("GET", f"{self.url}{path}"))
        begin = time.perf_counter()
        answer = self._session.send(request, timeout=timeout, allow_redirects=False)
        return (time.perf_counter() - begin) * 1000, answer


@dataclass(frozen=True)
class Route:
    """One kind of request."""

    group: str
    name: str
    paths: Sequence[str]
    """Requested one after the other, and again from the beginning."""
    holds: Callable[[requests.Response], bool]
    """Whether an answer is not empty: an empty list is quick to make."""


@dataclass
class Series:
    """How long the answers to one kind of request took on one server."""

    client: Client
    route: Route
    ms: list[float] = field(default_factory=list)
    bytes: int = 0
    """Of the largest answer."""
    seconds: float = 0.0
    problem: str = ""
    """Why it is not measured, and which path showed that."""
    problem_path: str = ""

    def take(self, turn: int, *, counts: bool) -> None:
        """Request once."""
        path = self.route.paths[turn % len(self.route.paths)]
        try:
            ms, answer = self.client.get(path)
        except requests.RequestException as error:
            self.problem, self.problem_path = type(error).__name__, path
            return
        self.seconds += ms / 1000
        if answer.status_code != requests.codes.ok:
            self.problem, self.problem_path = f"{answer.status_code} {answer.reason}", path
        elif not self.route.holds(answer):
            self.problem, self.problem_path = "empty", path
        elif counts:
            self.ms.append(ms)
            self.bytes = max(self.bytes, len(answer.content))


def by_turns(series: Sequence[Series], turns: int, *, warm: int, seconds: float, least: int) -> None:
    """Request all by turns, so that a slow moment of the machine slows all of them.

    :param warm: how many turns are not counted
    :param seconds: a series that has taken so long is done, once ``least`` of its turns are counted
    """
    for turn in range(-warm, turns):
        for route_series in series if turn % 2 else reversed(series):
            if not route_series.problem and (route_series.seconds < seconds or len(route_series.ms) < least):
                route_series.take(turn + warm, counts=turn >= 0)
