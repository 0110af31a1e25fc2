"""Which engines are looked at, and how one that never answers is asked."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.domain.executors import Executor, executors
from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry import sources
from airflow_worker_insight.registry.sources import configured_sources
from airflow_worker_insight.registry.timeouts import Bounded, NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Iterator


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
def test_an_engine_is_looked_at_where_an_executor_of_it_is_configured(setting: str | None, names: list[str]) -> None:
    found = [engine.name for engine in configured_sources(setting)]
    assert sorted(found) == sorted(names)
    # Its brokers may hang.
    assert found[-1] == (SourceName.CELERY if SourceName.CELERY in names else SourceName.TRIES)


def test_an_engine_without_its_provider_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_is_installed", lambda _module: False)
    assert [engine.name for engine in configured_sources("CeleryExecutor,EdgeExecutor")] == [SourceName.TRIES]


# --- bounded ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def answer() -> Iterator[threading.Event]:
    """Return what lets the hanging question of a test end."""
    event = threading.Event()
    yield event
    event.set()


def test_an_answer_and_an_error_are_passed_on() -> None:
    bounded: Bounded[int] = Bounded("The broker")
    assert bounded.ask(lambda: 7, seconds=60) == 7
    with pytest.raises(ZeroDivisionError):
        bounded.ask(lambda: 1 // 0, seconds=60)
    assert bounded.ask(lambda: 8, seconds=60) == 8


def test_one_that_hangs_is_left_behind_and_not_asked_again_until_it_ends(answer: threading.Event) -> None:
    bounded: Bounded[bool] = Bounded("The broker")
    asked = []

    def hang() -> bool:
        asked.append(threading.current_thread())
        return answer.wait()

    with pytest.raises(NoAnswerError, match="The broker did not answer within"):
        bounded.ask(hang, seconds=0.01)
    with pytest.raises(NoAnswerError, match="The look before still waits"):
        bounded.ask(hang, seconds=0.01)
    assert len(asked) == 1
    assert asked[0].daemon, "it must not keep the process from ending"
    answer.set()
    asked[0].join()
    assert bounded.ask(lambda: True, seconds=60)
