"""Order the tests, print the deployment of a failed one, and list runs that were repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support import lost_tries, scheduling
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.scheduling import LongestFirst


REPEATED = "repeated"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start long files first."""
    items.sort(key=lambda item: scheduling.rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LongestFirst | None:
    """Keep that order with ``--dist loadfile``, and hand out single tests one by one."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return scheduling.LongestFirst(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the output of a module's deployment, which does not learn of the failure itself."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            airflow = value if isinstance(value, Deployment) else getattr(value, "airflow", None)
            if isinstance(airflow, Deployment):
                report.sections.append(("Deployment", airflow.report()))
    # The report carries it from a worker of pytest-xdist to the process that prints the summary.
    report.user_properties += [(REPEATED, run) for run in lost_tries.repeated]
    lost_tries.repeated.clear()
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the repeated runs: a growing number is a fault of the machine or of ours."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    found = {
        (report.nodeid, value)
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == REPEATED
    }
    if found:
        terminalreporter.section(f"runs repeated because Airflow lost a try of them: {len(found)}")
        for nodeid, run in sorted(found):
            terminalreporter.write_line(f"{nodeid}: {run}")
