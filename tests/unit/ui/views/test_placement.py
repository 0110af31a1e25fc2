"""The reason for a placement, on the panel and on the worker's page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.reasons import WAITING_REASONS, PlacementReason
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.placements import Explanation, Placement
from airflow_worker_insight.store.tables import placement
from airflow_worker_insight.ui.views.panel import build_panel
from airflow_worker_insight.ui.views.placement import why_text
from airflow_worker_insight.ui.views.worker import build_worker_page
from tests.unit.database import NOON, add_run, add_try
from tests.unit.ui.attempts import HERE, a_try, on
from tests.unit.ui.workers import NOW, a_worker_row, an_instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.testclient import TestClient

    from tests.unit.database import Database

LINE = "w2@etl-1: least loaded of 4 workers, 3 of 16 slots taken; left out: w3@etl-1 (draining)"


def placed(task_id: str = "load", **others: Any) -> Placement:
    known: dict[str, Any] = {"reason": PlacementReason.LEAST_LOADED, "detail": LINE, "worker_ref": 1, "placed_at": NOON}
    return Placement(TryKey("etl", "run-1", task_id, -1, 1), **{**known, **others})


def page(**others: Any) -> Any:
    from airflow_worker_insight.ui.query_params import WorkerParams

    row = others.pop("row", a_worker_row(running=0))
    return build_worker_page(an_instance(row, **others), WorkerParams(), may_read=True, may_decide=False, now=NOW)


def test_panel_says_why_a_try_was_placed() -> None:
    tries = [a_try(2, 20, 30, on("w2")), a_try(1, 0, 10, on("w1"))]
    panel = build_panel(
        HERE,
        tries,
        now=NOW,
        placed={2: Explanation(PlacementReason.RETRY_ELSEWHERE), 1: Explanation(PlacementReason.LEAST_LOADED, LINE)},
    )
    assert [row.why for row in panel.rows] == [
        "Placed: avoids a worker that failed this task",
        f"Placed: {LINE}",
    ]
    assert [row.why for row in build_panel(HERE, tries, now=NOW).rows] == ["", ""]


def test_waiting_try_says_what_it_waits_for() -> None:
    assert why_text(Explanation(PlacementReason.FULL, "waits: all eligible workers are full")) == (
        "Not placed yet: all eligible workers are full"
    )


@pytest.mark.parametrize(
    ("why", "summary"),
    [
        (Explanation(PlacementReason.FULL, "waits: all are full"), "The only try so far waits for a worker."),
        (Explanation(PlacementReason.LEAST_LOADED, LINE), "The only try so far waits to start."),
    ],
)
def test_waiting_try_has_a_summary_and_no_notice(why: Explanation, summary: str) -> None:
    waits = a_try(1, state="queued", attribution="never_started")
    panel = build_panel(HERE, [waits], now=NOW, placed={1: why})
    assert (panel.notices, panel.summary) == ((), summary)
    # Nothing is known of its placing.
    (notice,) = build_panel(HERE, [waits], now=NOW).notices
    assert "check that a worker consumes its queue" in notice.text


def test_ended_try_does_not_wait() -> None:
    one = Explanation(PlacementReason.FULL, "waits: all eligible workers are full")
    assert why_text(one, is_over=True) == "Not placed: all eligible workers are full"
    # Its run has been reconciled.
    assert why_text(Explanation(PlacementReason.FULL), is_over=True) == "Not placed: all eligible workers are full"


@pytest.mark.parametrize("reason", PlacementReason.values())
def test_each_reason_has_a_text(reason: str) -> None:
    text = why_text(Explanation(reason))
    assert reason not in text
    assert text.startswith("Not placed yet: " if reason in WAITING_REASONS else "Placed: ")


@pytest.mark.parametrize(
    ("availability", "others", "text"),
    [
        ("available", {"placed": ((placed(),), 60), "open_tries": 61}, "60 tries wait for a free slot."),
        ("available", {"open_tries": 3}, "No try that you can see waits for a free slot."),
        ("available", {}, "No try waits for a free slot."),
        (
            "draining",
            {"placed": ((placed(),), 1), "open_tries": 4},
            "The worker gets no new tasks. 1 try waits for a free slot.",
        ),
        ("draining", {"open_tries": 3}, "The worker gets no new tasks. 3 tries still run or wait."),
        ("quarantined", {"open_tries": 1}, "The worker gets no new tasks. 1 try still runs or waits."),
        ("draining", {}, "The worker is empty and gets no new tasks."),
    ],
)
def test_worker_says_how_many_tries_wait_there(availability: str, others: dict[str, Any], text: str) -> None:
    found = page(row=a_worker_row(availability=availability, running=0), places=True, **others).placed
    assert found.text == text
    assert bool(found.rest) == (text.startswith("60"))


def test_worker_has_no_placed_tries_without_a_placing_executor() -> None:
    assert page().placed is None
    assert page(row=a_worker_row(availability="draining")).placed is None
    assert page(row=a_worker_row(state="lost"), places=True, open_tries=1).placed is None


def test_worker_that_runs_unplaced_tries_is_not_empty() -> None:
    found = page(row=a_worker_row(availability="draining", running=2), places=True).placed
    assert found.text == "The worker gets no new tasks. 2 tries still run or wait."


def test_panel_and_worker_page_show_the_placement(client_of: Callable[..., TestClient], tries: Database) -> None:
    with tries.engine.begin() as connection:
        worker = tries.workers()[0]
        run = add_run(connection, run_id="run-placed", state="running", ended_at=None)
        key = add_try(connection, run, "waits", state="queued", ended_at=None, hostname=None)
        one = Placement(key, PlacementReason.LEAST_LOADED, LINE, worker_ref=worker["id"], dedicated_queue="own")
        placements.write(connection, [one], now=NOON)
        assert connection.execute(placement.select()).first()
    client = client_of("admin")
    panel = client.get(f"/panel?dag_id={key.dag_id}&run_id={key.run_id}&task_id=waits")
    assert f"Placed: {LINE}" in panel.text
    shown = client.get(f"/workers/{worker['worker_id']}")
    assert "1 try waits for a free slot." in shown.text
    assert LINE in shown.text
    assert f'href="/worker-insight/waiting?worker={worker["worker_id"]}"' in shown.text
