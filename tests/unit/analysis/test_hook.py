"""The function that an operator names is told of findings, and can neither block nor fail the analysis."""

from __future__ import annotations

import sys
from threading import Event
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.analysis import hook
from airflow_worker_insight.api.responses import FindingResponse
from airflow_worker_insight.capture.counters import snapshot
from airflow_worker_insight.domain.findings import (
    FindingAction,
    FindingChanges,
    FindingOutcome,
    FindingState,
    StoredFinding,
    SubjectKind,
)
from tests.unit.database import at
from tests.unit.findings import a_finding, a_share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_mock import MockerFixture

ENOUGH = 60.0
"""Seconds until a test gives up waiting."""


def stored(finding_id: int = 1, state: FindingState = FindingState.OPEN, **others: Any) -> StoredFinding:
    return StoredFinding(
        finding_id,
        state,
        SubjectKind.WORKER,
        FindingOutcome.FAILED,
        at(600),
        None,
        None,
        a_finding(finding_id, state=state, **others),
    )


def found(*findings: StoredFinding) -> FindingChanges:
    return FindingChanges([*findings], [], actions=dict.fromkeys((f.finding_id for f in findings), FindingAction.FOUND))


class Counted:
    """What was counted since this was made."""

    def __init__(self) -> None:
        self._before = snapshot()

    def __getitem__(self, name: str) -> int:
        return snapshot().get(name, 0) - self._before.get(name, 0)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def name_hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Return a function that puts another one into a module of its own, and names it in the configuration."""

    def name(function: Any) -> str:
        module = ModuleType(f"hook_of_{request.node.name.partition('[')[0]}")
        module.alert = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        path = f"{module.__name__}.alert"
        monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ON_FINDING", path)
        return path

    return name


@pytest.fixture(autouse=True)
def _own_hook(mocker: MockerFixture) -> None:
    mocker.patch.object(hook, "_hook", hook.FindingHook())


@pytest.fixture
def hanging() -> Iterator[tuple[Event, Event]]:
    """Return what is set when a call has begun, and what lets it end."""
    begun, may_end = Event(), Event()
    yield begun, may_end
    may_end.set()


def test_it_gets_what_rest_answers_and_the_action(name_hook: Callable[[Any], str], counted: Counted) -> None:
    calls: list[dict[str, Any]] = []
    name_hook(calls.append)
    new, other = stored(7, shares=[a_share("secret", failures=5), a_share(failures=4)]), stored(8)
    recovers = stored(9, FindingState.RECOVERING)
    actions = {7: FindingAction.FOUND, 9: FindingAction.RECOVERING}
    hook.notify(FindingChanges([new], [other, recovers], actions=actions))
    assert hook.flush(ENOUGH)
    assert [(call["action"], call["finding_id"]) for call in calls] == [("found", 7), ("recovering", 9)]
    fields = {name: value for name, value in calls[0].items() if name != "action"}
    assert FindingResponse.model_validate(fields).model_dump(mode="json") == fields
    assert [task["dag_id"] for task in fields["tasks"]] == ["secret", "etl"]
    assert counted["findings.found"] == 1


def test_what_had_ended_when_it_was_stored_calls_nothing(name_hook: Callable[[Any], str], counted: Counted) -> None:
    calls: list[dict[str, Any]] = []
    name_hook(calls.append)
    hook.notify(FindingChanges([stored(1, FindingState.CLOSED)], [], actions={1: FindingAction.CLOSED}))
    assert hook.flush(ENOUGH)
    assert calls == []
    assert counted["findings.found"] == 1


def test_without_a_path_nothing_is_queued(counted: Counted) -> None:
    hook.notify(found(stored()))
    assert hook.flush(0)
    assert counted["findings.found"] == 1
    assert counted["findings.hook.failed"] == counted["findings.hook.skipped"] == 0


def test_one_that_raises_is_called_again_and_logged_once(
    name_hook: Callable[[Any], str], counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def alert(finding: dict[str, Any]) -> None:
        calls.append(finding["finding_id"])
        raise RuntimeError("no route to host")

    path = name_hook(alert)
    hook.notify(found(stored(1), stored(2)))
    assert hook.flush(ENOUGH)
    assert calls == [1, 2]
    assert counted["findings.hook.failed"] == 2
    (line,) = [record.getMessage() for record in caplog.records if path in record.getMessage()]
    assert "RuntimeError: no route to host" in line


@pytest.mark.parametrize("path", ["nowhere.at_all.alert", "json.no_such_name", "alert", "json.__name__", "..", "a b.c"])
def test_a_path_that_leads_nowhere_is_logged_once_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, counted: Counted, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ON_FINDING", path)
    hook.notify(found(stored(1), stored(2)))
    assert hook.flush(ENOUGH)
    assert counted["findings.hook.failed"] == 2
    (line,) = [record.getMessage() for record in caplog.records if repr(path) in record.getMessage()]
    assert "Set it to the dotted path of a function" in line


def test_one_that_hangs_is_skipped_until_it_returns(
    name_hook: Callable[[Any], str],
    mocker: MockerFixture,
    counted: Counted,
    caplog: pytest.LogCaptureFixture,
    hanging: tuple[Event, Event],
) -> None:
    begun, may_end = hanging
    calls: list[int] = []

    def alert(finding: dict[str, Any]) -> None:
        calls.append(finding["finding_id"])
        begun.set()
        may_end.wait(ENOUGH)

    path = name_hook(alert)
    own = hook.FindingHook(timeout=0.01)
    mocker.patch.object(hook, "_hook", own)
    hook.notify(found(stored(1), stored(2), stored(3)))
    assert hook.flush(ENOUGH)
    assert begun.is_set()
    assert calls == [1]
    assert (counted["findings.hook.failed"], counted["findings.hook.skipped"]) == (1, 2)
    assert sum(f"{path} has not returned" in record.getMessage() for record in caplog.records) == 1
    may_end.set()
    assert own._call is not None
    own._call.join(ENOUGH)
    hook.notify(found(stored(4)))
    assert hook.flush(ENOUGH)
    assert calls == [1, 4]


def test_more_than_the_queue_holds_is_skipped(
    name_hook: Callable[[Any], str], counted: Counted, hanging: tuple[Event, Event]
) -> None:
    begun, may_end = hanging
    calls: list[int] = []

    def alert(finding: dict[str, Any]) -> None:
        begun.set()
        may_end.wait(ENOUGH)
        calls.append(finding["finding_id"])

    name_hook(alert)
    hook.notify(found(stored(0)))
    assert begun.wait(ENOUGH)
    hook.notify(found(*(stored(number) for number in range(1, 106))))
    assert not hook.flush(0)
    assert counted["findings.hook.skipped"] == 5
    may_end.set()
    assert hook.flush(ENOUGH)
    assert calls == list(range(101))


def test_a_finding_that_cannot_be_read_fails_nobody(
    name_hook: Callable[[Any], str], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[dict[str, Any]] = []
    name_hook(calls.append)
    broken = StoredFinding(
        1, FindingState.OPEN, SubjectKind.WORKER, FindingOutcome.FAILED, at(0), None, None, {"number": 1}
    )
    hook.notify(found(broken))
    assert calls == []
    assert "on_finding could not be called" in caplog.text
