"""``placements list``: tries that wait for a worker, and tries that are placed on one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from airflow.utils.cli import suppress_logs_and_warning

from airflow_worker_insight import config
from airflow_worker_insight.api.responses import PlacementResponse, placement_fields
from airflow_worker_insight.cli import output
from airflow_worker_insight.cli.common import read_pages, require_tables
from airflow_worker_insight.domain.filters import AllDags, PlacementFilter, build
from airflow_worker_insight.store import placements, session

if TYPE_CHECKING:
    from airflow_worker_insight.store.placements import ListedPlacement


@suppress_logs_and_warning
def list_placements(args: Any) -> None:
    """List waiting and placed tries."""
    require_tables()
    filters = build(PlacementFilter, args)
    with session.reading(session.COMMAND) as connection:

        def read(limit: int, offset: int) -> tuple[list[ListedPlacement], int]:
            return placements.find(connection, filters, dag_ids=AllDags(), limit=limit, offset=offset)

        tries, total = read_pages(read, args)
    rows = (
        [output.to_rest(PlacementResponse, placement_fields(listed)) for listed in tries]
        if output.is_structured(args.output)
        else [_table_row(listed) for listed in tries]
    )
    output.show(rows, args.output)
    output.warn_truncated(len(tries), total, "tries")
    if not tries and not config.places_tasks():
        print("[core] executor has no executor of this package, so tasks are not placed", file=sys.stderr)


def _table_row(listed: ListedPlacement) -> dict[str, Any]:
    key = listed.placement.key
    return {
        "dag_id": key.dag_id,
        "run_id": key.run_id,
        "task_id": key.task_id,
        "map_index": key.map_index,
        "try_number": key.try_number,
        "state": listed.state,
        "worker": listed.worker_name,
        "since": listed.placement.placed_at,
        "queue": listed.queue,
        "why": listed.placement.sentence,
    }
