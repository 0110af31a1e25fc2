"""What the pages show, read and built for one reader; whether it may be shown is asked by those who call."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight.store import reading
from airflow_worker_insight.web import database
from airflow_worker_insight.web.view import PAGE_SIZE, Notice, Panel, WorkerPage, build_panel, build_worker_page

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow_worker_insight.web.address import PanelAddress

_WORKER_ID = re.compile(r"[A-Za-z0-9._@:-]{1,64}")

HEADERS = {
    # Everything a page needs comes from here; inside Airflow's own pages it may be framed, elsewhere not.
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
"""Of every answer."""

NO_SUCH_WORKER = (
    "No worker with this ID was recorded here. An ID that stands for all workers of a host is recorded when the Dag "
    "run of its first try has ended."
)

_NO_RIGHT = (
    "Airflow does not let you see this: ask an administrator for the right to read this Dag’s task instances, or, for "
    "a worker’s page, Airflow’s jobs."
)
_TITLES = {
    403: "Not for you to see",
    404: "Not found",
    422: "This address cannot be right",
    503: "Not ready yet",
}


def panel(address: PanelAddress) -> Panel:
    """Return the panel of a task instance."""
    with database.reading() as connection:
        attempts = reading.task_instance_attempts(
            connection,
            dag_id=address.dag_id,
            run_id=address.run_id,
            task_id=address.task_id,
            map_index=address.map_index,
        )
    return build_panel(address, attempts, now=_now())


def worker_page(worker_id: str, *, dag_ids: Collection[str], offset: int) -> WorkerPage | None:
    """Return the page of a worker, or ``None`` for one that was never seen.

    :param dag_ids: the Dags whose tries the reader may see
    """
    # An ID that no worker can have need not be asked for.
    if not _WORKER_ID.fullmatch(worker_id):
        return None
    with database.reading() as connection:
        worker = reading.get_worker(connection, worker_id)
        if worker is None:
            return None
        attempts, total = reading.list_attempts(
            connection, reading.AttemptFilter(worker_id=worker_id), dag_ids=dag_ids, limit=PAGE_SIZE, offset=offset
        )
    return build_worker_page(worker, attempts, total=total, offset=offset, now=_now())


def problem(status: int, text: str) -> Notice:
    """Return what a page says instead of what was asked for."""
    return Notice("warning", _TITLES.get(status, "That did not work"), _NO_RIGHT if status == 403 else text)  # noqa: PLR2004


def _now() -> datetime:
    return datetime.now(tz=timezone.utc)
