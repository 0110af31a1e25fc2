"""Measure what our plugin adds to a task process, beside what OpenLineage's adds."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.results import SERIES, Grid, Result, Summary, Target
from tests.benchmarks.setting import INSIDE, distributions

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting
    from tests.support.environments import Environment

VERSIONS = ("3.3.2", "2.11.2")

PLUGINS = {
    "worker-insight": "airflow_worker_insight.plugin:WorkerInsightPlugin",
    "openlineage": "airflow.providers.openlineage.plugins.openlineage:OpenLineageProviderPlugin",
}

#: In 2.11 the task process writes to the database itself: this is imported when the first try is recorded.
FIRST_CALL = {"2.11.2": "airflow_worker_insight.capture.direct"}

AT_MOST_MS = 10.0


def run(setting: Setting) -> Result:
    """Measure pairs of fresh interpreters, one with each plugin, alternating."""
    pairs = setting.size(15, 3)
    grid = Grid(f"Added to a task process by importing (ms, {pairs} pairs of fresh interpreters)", [*SERIES, "modules"])
    data: dict[str, Any] = {}
    targets: list[Target] = []
    versions: dict[str, str] = {}
    for version in VERSIONS:
        environment = setting.environment_with_openlineage(version)
        found = _pairs(environment, pairs)
        data[version] = found
        for name, runs in found.items():
            grid.add_summary(f"{version}: {name}", _summary(runs), len(runs[0]["modules"]))
        if then := [measured["then_ms"] for measured in found["worker-insight"] if "then_ms" in measured]:
            grid.add_summary(
                f"{version}: worker-insight, first try",
                Summary.of(then),
                len(found["worker-insight"][0]["then_modules"]),
            )
        ours, theirs = (_summary(found[name]).median for name in PLUGINS)
        grid.add(f"{version}: openlineage / worker-insight", "", theirs / ours, "", "", "", "")
        targets.append(Target(f"import: added to a task process, {version} (median)", ours, AT_MOST_MS, "ms"))
        names = ("apache-airflow", "apache-airflow-providers-openlineage", "airflow-worker-insight")
        versions |= {f"{name} on {version}": found for name, found in distributions(environment, *names).items()}
    return Result("import", [grid], targets, {v: _condensed(found) for v, found in data.items()}, versions)


def _pairs(environment: Environment, pairs: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in PLUGINS}
    with tempfile.TemporaryDirectory(prefix="worker-insight-bench-") as folder:
        # The first of each is not counted: it reads the files from the disk, and Airflow writes its configuration.
        for number in range(-1, pairs):
            for name in sorted(PLUGINS, reverse=bool(number % 2)):
                measured = _once(environment, name, Path(folder))
                if number >= 0:
                    found[name].append(measured)
    return found


def _once(environment: Environment, name: str, folder: Path) -> dict[str, Any]:
    output = folder / "found.json"
    arguments = ["--output", str(output), "--major", environment.version[0], "--plugin", PLUGINS[name]]
    if name == "worker-insight" and environment.version in FIRST_CALL:
        arguments += ["--then", FIRST_CALL[environment.version]]
    settings = {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # Without a transport OpenLineage's plugin is off and loads no listener.
        "AIRFLOW__OPENLINEAGE__TRANSPORT": '{"type": "console"}',
    }
    environment.run(INSIDE / "import_probe.py", *arguments, env=settings, cwd=folder)
    found: dict[str, Any] = json.loads(output.read_text())
    if not found["listeners"]:
        raise RuntimeError(f"{name} gave no listener: it is not what runs in a task process")
    return found


def _summary(runs: list[dict[str, Any]]) -> Summary:
    return Summary.of([measured["ms"] for measured in runs])


def _condensed(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return each duration, and the modules by package: by name where they are few."""
    condensed = {}
    for name, runs in found.items():
        modules = runs[0]["modules"]
        packages = Counter(module.partition(".")[0] for module in modules)
        condensed[name] = {
            **_summary(runs).as_dict(),
            "ms": [round(measured["ms"], 3) for measured in runs],
            "modules": modules if len(modules) <= 40 else dict(packages.most_common()),
            "modules_added": len(modules),
        }
        if "then_ms" in runs[0]:
            condensed[name]["first_try_ms"] = [round(measured["then_ms"], 3) for measured in runs]
            condensed[name]["first_try_modules"] = runs[0]["then_modules"]
    return condensed
