"""Measure pages and REST of 2,000 workers and 10 million attempts, and Flower's lists."""

from __future__ import annotations

import math
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from tests.benchmarks import flower
from tests.benchmarks.requesting import Client, Route, Series, by_turns
from tests.benchmarks.results import Grid, Result, Summary, Target
from tests.benchmarks.setting import distributions, probe
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import requests

    from tests.benchmarks.setting import Setting

AT_MOST_MS = 100.0
GROWS_AT_MOST = 1.5

AIRFLOW_ROWS = 500_000
"""How many of the latest tries have rows in Airflow's own tables, which Airflow cleans."""

ROOT = "/worker-insight"
API = f"{ROOT}/api/v1"

Parameters = dict[str, object]

NONE: dict[str, Parameters] = {"state of none": {"state": "skipped"}, "task_id of none": {"task_id": "no_such_task"}}
"""Filters that no attempt passes: such a query reads the most."""


def run(setting: Setting) -> Result:
    """Fill a deployment with each number of attempts; request both and a Flower by turns."""
    workers = setting.size(2_000, 200)
    sizes = setting.sizes((1_000_000, 10_000_000), (20_000, 60_000))
    with ExitStack() as stack:
        deployments, filled = [], []
        for size in sizes:
            airflow = stack.enter_context(_deployment(setting))
            airflow.migrate()
            deployments.append(airflow)
            filled.append(_fill(airflow, workers, size))
        url = stack.enter_context(flower.running_flower(deployments[0]))
        known = flower.feed(deployments[0], url, workers, setting.size(flower.KEEPS + 5_000, 3_000))
        ours: list[list[Series]] = []
        for airflow, found in zip(deployments, filled, strict=True):
            airflow.start("api-server")
            client = Client(airflow.base_url, {"Authorization": f"Bearer {airflow.token('admin')}"})
            ours.append([Series(client, route) for route in routes(found["samples"])])
        theirs = [Series(Client(url), route) for route in flower.routes(known)]
        # The same route of all sizes follows one another.
        everything = [series for per_size in zip(*ours, strict=True) for series in per_size] + theirs
        by_turns(everything, setting.size(60, 8), warm=setting.size(5, 2), seconds=20, least=setting.size(10, 2))
    return Result(
        "fleet",
        [_sizes(filled), *_grids(sizes, ours), _flower_grid(known, theirs)],
        _targets(sizes, ours),
        {
            "workers": workers,
            "sizes": [{name: value for name, value in fill.items() if name != "samples"} for fill in filled],
            "routes": [_data(sizes, per_size) for per_size in zip(*ours, strict=True)],
            "flower": {**{name: value for name, value in known.items() if name != "names"}, "routes": _flower(theirs)},
        },
        {
            **distributions(setting.environment(), "apache-airflow", "sqlalchemy", "airflow-worker-insight", "flower"),
            "postgresql": setting.postgres.execute("SHOW server_version")[0]["server_version"],
        },
    )


def _deployment(setting: Setting) -> Deployment:
    return Deployment(
        setting.environment(),
        executor="CeleryExecutor",
        postgres=setting.postgres,
        redis=setting.redis,
        # No worker runs: no poll may change their rows.
        config={"worker_insight.refresh_interval": "86400"},
    )


def _fill(airflow: Deployment, workers: int, attempts: int) -> dict[str, Any]:
    rows = min(AIRFLOW_ROWS, attempts)
    arguments = ["--workers", workers, "--attempts", attempts, "--airflow-rows", rows]
    found: dict[str, Any] = probe(airflow, "fleet_fill", *map(str, arguments), timeout=3600)
    return found


# --- routes ---------------------------------------------------------------------------------------------------


def routes(samples: Mapping[str, Any]) -> list[Route]:
    """Return all routes to measure, with parameters from the filled tables."""
    return [
        *_pages_of_workers(samples),
        *_pages_of_one_worker(samples),
        *_pages_of_attempts(samples),
        *_rest_workers(samples),
        *_rest_attempts(samples),
        _list("REST services", "", f"{API}/services", [{}]),
        _list("REST services", "last page", f"{API}/services", [{"offset": _last_page(samples)}]),
        _list("REST services", "kind=scheduler", f"{API}/services", [{"kind": "scheduler"}]),
        _list("REST services", "kind=worker", f"{API}/services", [{"kind": "worker"}]),
        _list("REST services", "state=lost", f"{API}/services", [{"state": "lost"}]),
    ]


def _pages_of_workers(samples: Mapping[str, Any]) -> Iterable[Route]:
    all_of_them: Parameters = {"state": "any", "seen": "any"}
    filters: dict[str, list[Parameters]] = {
        "": [{}],
        "all": [all_of_them],
        "all, last page": [{**all_of_them, "offset": _last_page(samples)}],
        "all, by running": [{**all_of_them, "order": "-running"}],
        "state": _each("state", ["lost"]),
        "kind": _each("kind", ["celery"]),
        "queue": _each("queue", samples["queues"]),
        "label": [{"label": f"zone={zone}"} for zone in samples["zones"]],
        "hostname": _each("hostname", samples["hostnames"]),
        "availability": _each("availability", ["quarantined"]),
        "search": _each("search", [hostname[:18] for hostname in samples["hostnames"]]),
        "grouped by queue": _each("group", ["queue"]),
        "grouped by host": _each("group", ["hostname"]),
        "grouped by label": _each("group", ["label:zone"]),
    }
    for name, parameters in filters.items():
        yield _page("page Workers", name, f"{ROOT}/workers", parameters)


def _pages_of_one_worker(samples: Mapping[str, Any]) -> Iterable[Route]:
    kinds: tuple[tuple[str, str, Parameters], ...] = (
        ("", "online", {}),
        ("a week", "online", {"hours": 168}),
        ("older tries", "online", {"offset": 50}),
        ("lost", "lost", {}),
    )
    for name, state, parameters in kinds:
        paths = [f"{ROOT}/workers/{worker_id}" for worker_id in samples["workers"][state]]
        yield Route("page Worker", name, [_path(path, parameters) for path in paths], _is_page)


def _pages_of_attempts(samples: Mapping[str, Any]) -> Iterable[Route]:
    always: Parameters = {"window": "any"}
    filters: dict[str, list[Parameters]] = {
        "": [{}],
        "any time": [always],
        "any time, page 100": [{**always, "offset": 4950}],
        "dag_id": _each("dag_id", samples["dag_ids"]),
        "dag_id, any time": [{**always, **query} for query in _each("dag_id", samples["dag_ids"])],
        "dag_id and run_id": [{**always, **query} for query in _runs(samples)],
        "task_id": _each("task_id", samples["task_ids"]),
        "worker": _each("worker", samples["workers"]["online"]),
        "worker by name": _each("worker", samples["names"]),
        "hostname": _each("hostname", samples["hostnames"]),
        "state": _each("state", ["failed"]),
        "state=running": _each("state", ["running"]),
        "since and until": _hours(samples, "since", "until"),
    }
    for name, parameters in filters.items():
        yield _page("page Attempts", name, f"{ROOT}/attempts", parameters)
    for name, none in NONE.items():
        yield Route("page Attempts", name, [_path(f"{ROOT}/attempts", {**always, **none})], _may_be_empty)


def _rest_workers(samples: Mapping[str, Any]) -> Iterable[Route]:
    filters: dict[str, list[Parameters]] = {
        "": [{}],
        "limit=1000": [{"limit": 1000}],
        "last page": [{"offset": _last_page(samples)}],
        "state": _each("state", ["online"]),
        "state=lost": _each("state", ["lost"]),
        "kind": _each("kind", ["celery"]),
        "name": _each("name", samples["names"]),
        "label": [{"label": f"zone={zone}"} for zone in samples["zones"]],
        "queue": _each("queue", samples["queues"]),
        "hostname": _each("hostname", samples["hostnames"]),
        "availability": _each("availability", ["draining", "quarantined"]),
        "order_by": [{"order_by": "-running"}],
    }
    for name, parameters in filters.items():
        yield _list("REST workers", name, f"{API}/workers", parameters)
    ids = samples["workers"]["online"]
    yield Route(
        "REST workers/{id}",
        "",
        [f"{API}/workers/{worker_id}" for worker_id in ids],
        lambda answer: "worker_id" in answer.text,
    )
    of_one: dict[str, Parameters] = {"": {}, "limit=1000": {"limit": 1000}, "state": {"state": "failed"}}
    for name, parameter in of_one.items():
        paths = [_path(f"{API}/workers/{worker_id}/attempts", parameter) for worker_id in ids]
        yield Route("REST workers/{id}/attempts", name, paths, _may_be_empty if name == "state" else _is_list)


def _rest_attempts(samples: Mapping[str, Any]) -> Iterable[Route]:
    latest = datetime.fromisoformat(samples["now"]) - timedelta(hours=1)
    runs = _runs(samples)
    filters: dict[str, list[Parameters]] = {
        "": [{}],
        "limit=1000": [{"limit": 1000}],
        "offset=9950": [{"offset": 9950}],
        "dag_id": _each("dag_id", samples["dag_ids"]),
        "run_id": [{"run_id": run["run_id"]} for run in runs],
        "dag_id, run_id": runs,
        "dag_id, run_id, task_id": [{**run, "task_id": samples["task_ids"][0]} for run in runs],
        "task_id": _each("task_id", samples["task_ids"]),
        "map_index": _each("map_index", [0, 1, 2, 3]),
        "try_number": _each("try_number", [1]),
        "try_number=3": _each("try_number", [3]),
        "worker_id": _each("worker_id", samples["workers"]["online"]),
        "worker_name": _each("worker_name", samples["names"]),
        "hostname": _each("hostname", samples["hostnames"]),
        "state": _each("state", ["success"]),
        "state=failed": _each("state", ["failed"]),
        "state=running": _each("state", ["running"]),
        "started_at_gte": [{"started_at_gte": latest.isoformat()}],
        "started_at_gte, started_at_lte": _hours(samples, "started_at_gte", "started_at_lte"),
    }
    for name, parameters in filters.items():
        yield _list("REST attempts", name, f"{API}/attempts", parameters)
    of_dags: list[Parameters] = [{**query, "state": "failed"} for query in _each("dag_id", samples["dag_ids"])]
    few: dict[str, list[Parameters]] = {"dag_id, state=failed": of_dags}
    for name, parameters in (few | {name: [query] for name, query in NONE.items()}).items():
        yield _list("REST attempts", name, f"{API}/attempts", parameters, may_be_empty=True)


def _each(name: str, values: Sequence[object]) -> list[Parameters]:
    return [{name: value} for value in values]


def _runs(samples: Mapping[str, Any]) -> list[Parameters]:
    return [{"dag_id": dag_id, "run_id": run_id} for dag_id, run_id in samples["runs"]]


def _hours(samples: Mapping[str, Any], since: str, until: str) -> list[Parameters]:
    """Return an hour from the middle of the history, and the eight hours before."""
    begin, end = (datetime.fromisoformat(samples[name]) for name in ("since", "now"))
    middle = begin + (end - begin) / 2
    hour = (end - begin) / 20 if end - begin < timedelta(hours=20) else timedelta(hours=1)
    return [
        {since: _moment(middle - hour * (number + 1)), until: _moment(middle - hour * number)} for number in range(9)
    ]


def _moment(value: datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ")


def _last_page(samples: Mapping[str, Any]) -> int:
    return int(samples["fleet"]) - 50


def _path(path: str, parameters: Parameters) -> str:
    return f"{path}?{urlencode(parameters, quote_via=quote)}" if parameters else path


def _page(group: str, name: str, path: str, parameters: Sequence[Parameters]) -> Route:
    return Route(group, name, [_path(path, query) for query in parameters], _is_page)


def _list(group: str, name: str, path: str, parameters: Sequence[Parameters], *, may_be_empty: bool = False) -> Route:
    return Route(group, name, [_path(path, query) for query in parameters], _may_be_empty if may_be_empty else _is_list)


def _is_page(answer: requests.Response) -> bool:
    return 'class="wi-name"' in answer.text


def _is_list(answer: requests.Response) -> bool:
    return any(isinstance(value, list) and value for value in answer.json().values())


def _may_be_empty(answer: requests.Response) -> bool:
    return answer.ok


# --- what was found --------------------------------------------------------------------------------------------------


def _sizes(filled: Sequence[Mapping[str, Any]]) -> Grid:
    grid = Grid("What was asked", ["", *(f"{fill['attempts']:,}" for fill in filled)])
    grid.add("the first attempt of", *(fill["samples"]["since"][:16] for fill in filled))
    grid.add("attempts that are not closed yet", *(f"{fill['not_closed']:,}" for fill in filled))
    grid.add("of these running by Airflow's word", *(f"{fill['running']:,}" for fill in filled))
    grid.add("rows in Airflow's task_instance", *(f"{fill['task_instances']:,}" for fill in filled))
    grid.add("seconds to fill", *(f"{sum(fill['seconds'].values()):.0f}" for fill in filled))
    return grid


def _grids(sizes: Sequence[int], ours: Sequence[Sequence[Series]]) -> list[Grid]:
    """Return a table for each group of routes."""
    heads = [f"{size:,}: {what}" for size in sizes for what in ("median", "p95")]
    grids: dict[str, Grid] = {}
    for per_size in zip(*ours, strict=True):
        route = per_size[0].route
        grid = grids.setdefault(route.group, Grid(f"{route.group} (ms)", ["", *heads, "grows", "KiB"]))
        if problems := [series.problem for series in per_size if series.problem]:
            grid.add(route.name or "as it is", *[""] * len(heads), "", problems[0])
            continue
        found = [Summary.of(series.ms) for series in per_size]
        cells = [cell for summary in found for cell in (summary.median, summary.p95)]
        grid.add(route.name or "as it is", *cells, f"x {_growth(per_size):.2f}", f"{per_size[-1].bytes / 1024:.0f}")
    return list(grids.values())


def _flower_grid(known: Mapping[str, Any], theirs: Sequence[Series]) -> Grid:
    title = f"Flower (ms): {known['workers']:,} workers, {known['kept']:,} tasks kept of {known['sent']:,}"
    grid = Grid(title, ["", "n", "median", "p95", "min", "max", "KiB"])
    for series in theirs:
        if series.problem:
            grid.add(series.route.name, *[""] * 5, series.problem)
        else:
            grid.add_summary(series.route.name, Summary.of(series.ms), f"{series.bytes / 1024:.0f}")
    return grid


def _growth(per_size: Sequence[Series]) -> float:
    """Return the median at the last size divided by that at the first."""
    return Summary.of(per_size[-1].ms).median / Summary.of(per_size[0].ms).median


def _targets(sizes: Sequence[int], ours: Sequence[Sequence[Series]]) -> list[Target]:
    """Return both targets for the worst of each group, and for every other that misses one."""
    groups: dict[str, list[Sequence[Series]]] = {}
    for one_route in zip(*ours, strict=True):
        groups.setdefault(one_route[0].route.group, []).append(one_route)
    targets: list[Target] = []
    for group, members in groups.items():
        slow: list[Target] = []
        growing: list[Target] = []
        for per_size in members:
            name = f"{group}, {per_size[0].route.name}" if per_size[0].route.name else group
            if any(series.problem for series in per_size):
                targets.append(Target(f"fleet: {name}", math.inf, AT_MOST_MS, "ms"))
                continue
            p95 = Summary.of(per_size[-1].ms).p95
            if "limit=" not in name:
                slow.append(Target(f"fleet: {name}, {sizes[-1]:,} (p95)", p95, AT_MOST_MS, "ms"))
            growing.append(Target(f"fleet: {name}, growth", _growth(per_size), GROWS_AT_MOST, "x"))
        for found in (slow, growing):
            found.sort(key=lambda target: -target.measured)
            targets += found[:1] + [target for target in found[1:] if not target.met]
    return targets


def _data(sizes: Sequence[int], per_size: Sequence[Series]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "group": per_size[0].route.group,
        "name": per_size[0].route.name,
        "path": per_size[0].route.paths[0],
    }
    for size, series in zip(sizes, per_size, strict=True):
        found[str(size)] = _series_data(series)
    if all(series.ms for series in per_size):
        found["grows"] = round(_growth(per_size), 3)
    return found


def _series_data(series: Series) -> dict[str, Any]:
    if series.problem or not series.ms:
        return {"problem": series.problem, "path": series.problem_path}
    return {**Summary.of(series.ms).as_dict(), "bytes": series.bytes}


def _flower(theirs: Sequence[Series]) -> list[dict[str, Any]]:
    return [{"name": series.route.name, "path": series.route.paths[0], **_series_data(series)} for series in theirs]
