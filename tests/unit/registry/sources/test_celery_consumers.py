"""Keeping work off Celery's workers, over a real broker; each worker here is a mailbox."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.domain.enforcement import Answer, Request
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.registry.sources import celery_consumers
from airflow_worker_insight.registry.sources.celery import CelerySource
from airflow_worker_insight.registry.sources.celery_control import DEDICATED_QUEUE_PREFIX, BrokerTimeouts
from tests.unit.celery_nodes import started_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.services import Redis

celery = pytest.importorskip("celery")

DEDICATED = f"{DEDICATED_QUEUE_PREFIX}celery-a"

remembered: dict[str, Any] = {}

enforce = partial(celery_consumers.enforce, remember=remembered.update, timeouts=BrokerTimeouts(idle=1.0))


def hold(*nodes: str) -> Request:
    return Request(frozenset(nodes), {})


@pytest.fixture
def app(redis: Redis) -> Any:
    made = celery.Celery("airflow.executors.celery_executor", broker=redis.broker_url())
    made.conf.update(accept_content=["json"], event_serializer="json")
    return made


@pytest.fixture
def nodes(app: Any) -> Iterator[Any]:
    with started_nodes(app) as start:
        yield start


def test_held_worker_consumes_no_shared_queue_and_says_what_it_had_fetched(app: Any, nodes: Any) -> None:
    node, peer = nodes("w1@host", "default", "etl", DEDICATED, fetched=3), nodes("w2@host", "default")
    assert enforce(app, hold("w1@host")) == {"w1@host": Answer(takes_work=False, fetched=3)}
    assert remembered["w1@host"] == {"default", "etl"}
    assert (node.queues, node.commands) == ({DEDICATED}, ["cancel default", "cancel etl"])
    assert (peer.queues, peer.commands) == ({"default"}, []), "its peer is left alone"


def test_worker_that_is_held_already_gets_no_command_again(app: Any, nodes: Any) -> None:
    node = nodes("w1@host", DEDICATED)
    assert enforce(app, hold("w1@host")) == {"w1@host": Answer(takes_work=False, fetched=0)}
    assert node.commands == []


def test_released_worker_consumes_its_queues_again(app: Any, nodes: Any) -> None:
    node = nodes("w1@host", "default")
    answers = enforce(app, Request(frozenset(), {"w1@host": ("default", "etl")}))
    assert answers == {"w1@host": Answer(takes_work=True, queues=("default", "etl"))}
    assert (node.queues, node.commands) == ({"default", "etl"}, ["add etl"])


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (hold("w1@host"), celery_consumers.STILL_CONSUMING),
        (Request(frozenset(), {"w1@host": ("default", "etl")}), celery_consumers.NOT_CONSUMING),
    ],
)
def test_worker_that_does_not_obey_is_said_to(app: Any, nodes: Any, request_: Request, error: str) -> None:
    nodes("w1@host", "default", obeys=False)
    answer = enforce(app, request_)["w1@host"]
    assert (answer.takes_work, answer.error) == (bool(request_.hold), error)


def test_worker_that_does_not_answer_is_missing(app: Any, nodes: Any) -> None:
    nodes("w2@host", "default")
    assert enforce(app, hold("w1@host")) == {}


def test_both_workers_of_one_name_are_held(app: Any, nodes: Any) -> None:
    first, second = nodes("w1@host", "default"), nodes("w1@host", "default", "large")
    enforce(app, hold("w1@host"))
    assert (first.queues, second.queues) == (set(), set())


def test_broker_that_is_down_is_the_reason_and_its_password_stays_secret() -> None:
    app = celery.Celery("down", broker="redis://:secret@127.0.0.1:1/0")
    source = CelerySource(celery_app=lambda _team: app, timeouts=BrokerTimeouts(connect=1.0))
    with pytest.raises(SourceUnavailableError, match="broker cannot be reached") as raised:
        source.enforce(hold("w1@host"), remembered.update)
    assert "secret" not in str(raised.value)


def test_nothing_is_cancelled_that_cannot_be_remembered(app: Any, nodes: Any) -> None:
    node = nodes("w1@host", "default")

    def refuse(_consumed: object) -> None:
        raise RuntimeError("the database is away")

    with pytest.raises(RuntimeError, match="away"):
        celery_consumers.enforce(app, hold("w1@host"), refuse, timeouts=BrokerTimeouts(idle=1.0))
    assert (node.queues, node.commands) == ({"default"}, [])


def test_released_worker_without_any_queue_gets_them_back_and_one_with_some_is_left_alone(app: Any, nodes: Any) -> None:
    empty, other = nodes("w1@host", DEDICATED), nodes("w2@host", "default")
    released = {"w1@host": ("default", "etl"), "w2@host": ("default", "etl")}
    answers = enforce(app, Request(frozenset(), {}, released))
    assert {node: answer.takes_work for node, answer in answers.items()} == {"w1@host": True, "w2@host": True}
    assert (empty.queues, other.commands) == ({DEDICATED, "default", "etl"}, [])
