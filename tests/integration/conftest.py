"""What is printed when a test of this folder fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the processes of a module's deployment printed: the deployment itself does not learn of the failure."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            airflow = value if isinstance(value, Deployment) else getattr(value, "airflow", None)
            if isinstance(airflow, Deployment):
                report.sections.append(("Deployment", airflow.report()))
    return report
