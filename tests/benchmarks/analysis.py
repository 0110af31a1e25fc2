"""Measure what the analysis costs per try through PostgreSQL, and in how many statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.results import Grid, Result, Summary, Target
from tests.benchmarks.setting import distributions, probe
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

AT_MOST_MS = 0.3

INTERVAL = 30


def run(setting: Setting) -> Result:
    """Analyse tries of 200 workers, a hundred per second, in a fresh deployment."""
    tries = setting.size(20_000, 2_000)
    with Deployment(setting.environment(), executor="CeleryExecutor", postgres=setting.postgres) as airflow:
        airflow.migrate()
        found = probe(
            *(airflow, "analysis_probe", "--tries", str(tries), "--workers", "200", "--tasks", "400"),
            *("--interval", str(INTERVAL)),
        )
    steps = found["steps"]
    seconds, cpu, database = (
        sum(step[name] for step in steps) / tries * 1000 for name in ("seconds", "cpu_seconds", "database_seconds")
    )
    statements = sum(step["statements"] for step in steps)
    counts = Grid("The analysis through PostgreSQL", ["", "value"])
    counts.add("tries", f"{tries:,}")
    counts.add("steps", len(steps))
    counts.add("processor ms per try", f"{cpu:.3f}")
    counts.add("ms in the database per try", f"{database:.3f}")
    counts.add("ms per try, with the sleep in between that lets requests run", f"{seconds:.3f}")
    counts.add("statements per step", f"{statements / len(steps):.1f}")
    counts.add("statements per 1,000 tries", f"{statements / tries * 1000:.1f}")
    counts.add("state in KiB", f"{found['state_bytes'] / 1024:.0f}")
    counts.add("restored in ms", f"{found['restored_seconds'] * 1000:.0f}")
    of_steps = Grid("A step (ms)", ["", "median", "p95"])
    milliseconds = Summary.of([step["seconds"] * 1000 for step in steps])
    of_steps.add("step", milliseconds.median, milliseconds.p95)
    last_lags = [step["lag"] for step in steps if step["lag"] == 0]
    return Result(
        "analysis",
        [counts, of_steps],
        [
            Target("analysis: processor and database per try", cpu + database, AT_MOST_MS, "ms"),
            # Lag is that of the first step after which nothing is left to read.
            Target("analysis: steps until caught up, per interval", len(steps) / max(len(last_lags), 1), 10.0, "steps"),
        ],
        found,
        distributions(setting.environment(), "apache-airflow", "sqlalchemy", "airflow-worker-insight"),
    )
