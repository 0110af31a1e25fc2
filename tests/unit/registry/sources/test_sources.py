"""Which sources are polled, and how one that never answers is called."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.domain.executors import Executor, executors
from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry import sources
from airflow_worker_insight.registry.sources import configured_sources
from airflow_worker_insight.registry.timeouts import CallTimeoutError, TimeLimitedCaller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_mock import MockerFixture


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, []),
        ("", []),
        ("LocalExecutor", [Executor("LocalExecutor")]),
        ("LocalExecutor, CeleryExecutor", [Executor("LocalExecutor"), Executor("CeleryExecutor")]),
        (
            "fast:my.package.FastExecutor,airflow.providers.celery.executors.celery_executor.CeleryExecutor",
            [Executor("FastExecutor"), Executor("CeleryExecutor")],
        ),
        (
            "LocalExecutor;billing=CeleryExecutor,slow:my.Executor;",
            [Executor("LocalExecutor"), Executor("CeleryExecutor", "billing"), Executor("Executor", "billing")],
        ),
    ],
)
def test_all_executors_are_read_with_their_teams(setting: str | None, expected: list[Executor]) -> None:
    assert executors(setting) == expected


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("CeleryExecutor", [SourceName.CELERY, SourceName.TRIES]),
        ("LocalExecutor", [SourceName.JOBS, SourceName.TRIES]),
        ("KubernetesExecutor", [SourceName.TRIES]),
        ("CeleryKubernetesExecutor", [SourceName.CELERY, SourceName.TRIES]),
        ("LocalKubernetesExecutor", [SourceName.JOBS, SourceName.TRIES]),
        ("airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor", [SourceName.CELERY, SourceName.TRIES]),
        (
            "placed:airflow_worker_insight.executors.local.WorkerInsightLocalExecutor",
            [SourceName.JOBS, SourceName.TRIES],
        ),
        (
            "LocalExecutor,EdgeExecutor;team=CeleryExecutor",
            [SourceName.CELERY, SourceName.EDGE, SourceName.JOBS, SourceName.TRIES],
        ),
        ("SequentialExecutor", [SourceName.TRIES]),
        (None, [SourceName.TRIES]),
    ],
)
def test_a_source_is_polled_where_its_executor_is_configured(setting: str | None, names: list[str]) -> None:
    found = [source.name for source in configured_sources(setting)]
    assert sorted(found) == sorted(names)
    # Its brokers may hang.
    assert found[-1] == (SourceName.CELERY if SourceName.CELERY in names else SourceName.TRIES)


def test_a_source_without_its_provider_is_left_out(mocker: MockerFixture) -> None:
    mocker.patch.object(sources, "find_spec", return_value=None)
    assert [source.name for source in configured_sources("CeleryExecutor,EdgeExecutor")] == [SourceName.TRIES]


# --- calls with a time limit -----------------------------------------------------------------------------------------


@pytest.fixture
def answer() -> Iterator[threading.Event]:
    """Return what lets the hanging call of a test end."""
    event = threading.Event()
    yield event
    event.set()


def test_an_answer_and_an_error_are_passed_on() -> None:
    caller: TimeLimitedCaller[int] = TimeLimitedCaller("The broker")
    assert caller.call(lambda: 7, seconds=60) == 7
    with pytest.raises(ZeroDivisionError):
        caller.call(lambda: 1 // 0, seconds=60)
    assert caller.call(lambda: 8, seconds=60) == 8


def test_a_call_that_hangs_is_abandoned_and_not_repeated_until_it_ends(answer: threading.Event) -> None:
    caller: TimeLimitedCaller[bool] = TimeLimitedCaller("The broker")
    asked = []

    def hang() -> bool:
        asked.append(threading.current_thread())
        return answer.wait()

    with pytest.raises(CallTimeoutError, match="The broker did not answer within"):
        caller.call(hang, seconds=0.01)
    with pytest.raises(CallTimeoutError, match="The broker has still not answered"):
        caller.call(hang, seconds=0.01)
    assert len(asked) == 1
    assert asked[0].daemon, "it must not keep the process from ending"
    answer.set()
    asked[0].join()
    assert caller.call(lambda: True, seconds=60)
