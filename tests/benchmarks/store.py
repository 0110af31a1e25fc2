"""Measure the bytes and queries of tables with 100,000 and 1,000,000 attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.results import Grid, Result, Summary, Target
from tests.benchmarks.setting import distributions, probe
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

AT_MOST_BYTES = 300.0
AT_MOST_PANEL_MS = 10.0


def run(setting: Setting) -> Result:
    """Fill the tables of a fresh deployment and measure them at both sizes."""
    sizes = setting.sizes((100_000, 1_000_000), (4_000, 20_000))
    with Deployment(setting.environment(), executor="CeleryExecutor", postgres=setting.postgres) as airflow:
        airflow.migrate()
        found = probe(airflow, "store_probe", "--sizes", ",".join(map(str, sizes)))
    bytes_ = Grid(
        "Bytes per attempt on PostgreSQL, all indexes", ["", *(f"{measured['attempts']:,}" for measured in found)]
    )
    for part in found[0]["bytes_split"]:
        bytes_.add(
            "heap" if part == "heap" else f"index {part}",
            *(f"{measured['bytes_split'][part]:.1f}" for measured in found),
        )
    bytes_.add("together", *(f"{measured['bytes_per_attempt']:.1f}" for measured in found))
    columns = [f"{measured['attempts']:,}: {what}" for measured in found for what in ("median", "p95")]
    times = Grid("Queries (ms)", ["", *columns, "grows"])
    targets, data = [], []
    summaries = [{name: Summary.of(ms) for name, ms in measured["milliseconds"].items()} for measured in found]
    for name in summaries[0]:
        medians = [at[name].median for at in summaries]
        cells = [cell for at in summaries for cell in (at[name].median, at[name].p95)]
        times.add(name, *cells, f"x {medians[-1] / medians[0]:.1f}")
    for measured, at in zip(found, summaries, strict=True):
        size = f"{measured['attempts']:,}"
        targets.append(Target(f"store: bytes per attempt, {size}", measured["bytes_per_attempt"], AT_MOST_BYTES, "B"))
        targets.append(Target(f"store: panel query, {size} (p95)", at["panel"].p95, AT_MOST_PANEL_MS, "ms"))
        data.append({**measured, "milliseconds": {name: summary.as_dict() for name, summary in at.items()}})
    return Result(
        "store",
        [bytes_, times],
        targets,
        {"sizes": data},
        {
            **distributions(setting.environment(), "apache-airflow", "sqlalchemy", "airflow-worker-insight"),
            "postgresql": setting.postgres.execute("SHOW server_version")[0]["server_version"],
        },
    )
