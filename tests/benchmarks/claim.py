"""Measure what the claim adds to an XCom request, on a running API server with PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.results import SERIES, Grid, Result, Summary, Target
from tests.benchmarks.setting import distributions, probe
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

AT_MOST_MS = 2.0


def run(setting: Setting) -> Result:
    """Measure pairs of requests: one whose XCom is claimed, one whose XCom is stored."""
    pairs = setting.size(400, 40)
    with Deployment(setting.environment(), executor="CeleryExecutor", postgres=setting.postgres) as airflow:
        airflow.migrate()
        airflow.start("api-server")
        found = probe(airflow, "claim_probe", "--url", airflow.base_url, "--pairs", str(pairs))
    if found["attempts"] != found["expected"] or list(found["xcoms"].values()) != [found["expected"]]:
        raise RuntimeError(
            f"of {found['expected']} reports {found['attempts']} are recorded, and XComs are left: {found['xcoms']}"
        )
    claimed, ordinary = ([pair[name] for pair in found["pairs"]] for name in ("claimed", "ordinary"))
    added = [pair["claimed"] - pair["ordinary"] for pair in found["pairs"]]
    marking = [p["claimed"] - p["ordinary"] for p in found["pairs"] if p["marks_worker"]]
    with_claim, without, difference = Summary.of(claimed), Summary.of(ordinary), Summary.of(added)
    grid = Grid(f"POST /execution/xcoms on PostgreSQL, Airflow 3.3.2 (ms, {pairs} pairs by turns)", SERIES)
    grid.add_summary("an ordinary key", without)
    grid.add_summary("the reserved key, claimed", with_claim)
    grid.add_summary("added, pair by pair", difference)
    if marking:
        grid.add_summary("added where the worker is marked as seen too", Summary.of(marking))
    grid.add("median with claim - median without", "", with_claim.median - without.median, "", "", "")
    return Result(
        "claim",
        [grid],
        [
            Target("claim: added to the XCom request (median of the pairs)", difference.median, AT_MOST_MS, "ms"),
        ],
        {
            "report_bytes": found["report_bytes"],
            "ordinary_ms": without.as_dict(),
            "claimed_ms": with_claim.as_dict(),
            "added_ms": difference.as_dict(),
            "added_where_worker_is_marked_ms": Summary.of(marking).as_dict() if marking else None,
            "difference_of_medians_ms": round(with_claim.median - without.median, 3),
            "ratio_of_medians": round(with_claim.median / without.median, 3),
        },
        {
            **distributions(setting.environment(), "apache-airflow", "sqlalchemy", "airflow-worker-insight"),
            "postgresql": setting.postgres.execute("SHOW server_version")[0]["server_version"],
        },
    )
