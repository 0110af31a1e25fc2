"""Fill the tables, or send reports to a running API server until a file exists."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import claim_probe  # type: ignore[import-not-found]
import filling  # type: ignore[import-not-found]
import store_probe  # type: ignore[import-not-found]
import traffic  # type: ignore[import-not-found]
from airflow.executors.base_executor import BaseExecutor
from sqlalchemy import text

from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.compat import metadata_database

MOST = 20_000
"""How many reports at most, each of a running try of its own."""

PAUSE = 0.04
"""Seconds between two reports: about 20 a second."""


def fill(rows: int) -> dict[str, int]:
    """Write so many attempts, and Airflow's own rows of them."""
    with metadata_database.engine().connect() as connection:
        filler = store_probe.Filler(connection)
        filler.fill(traffic.events(rows + store_probe.WINDOW), rows)
        with connection.begin():
            connection.execute(text(f"ALTER TABLE {filling.TABLE} RESET (autovacuum_enabled)"))
        filling.write_airflow_rows(connection, latest=filler.rows)
    return {"attempts": filler.rows}


def send(url: str, ready: Path, enough: Path) -> dict[str, object]:
    """Return how many milliseconds each report took."""
    tries = claim_probe.make_running_tries(MOST)
    generator = BaseExecutor(parallelism=1).jwt_generator
    sender = claim_probe.Sender(url)
    spent: list[float] = []
    for number, try_id in enumerate(tries):
        token = generator.generate({"sub": str(try_id), "scope": "execution"}, valid_for=3600)
        # As for its pairs of tries: two follow each other on one worker.
        spent.append(sender.post(REPORT_KEY, claim_probe.report(number // 2, try_id), number, token))
        ready.touch()
        if enough.exists():
            return {"milliseconds": spent}
        time.sleep(PAUSE)
    raise RuntimeError(f"the migration took longer than {MOST} reports")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--fill", type=int)
    parser.add_argument("--url")
    parser.add_argument("--ready", type=Path)
    parser.add_argument("--enough", type=Path)
    args = parser.parse_args()
    found = fill(args.fill) if args.fill else send(args.url, args.ready, args.enough)
    args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
