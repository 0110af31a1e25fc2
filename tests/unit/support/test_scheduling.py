"""Long files of integration tests start first, and single tests are handed out last."""

from __future__ import annotations

import re

import pytest

from tests.support import scheduling
from tests.support.environments import ROOT

FOLDER = ROOT / scheduling.FOLDER


def ids_of(file: str) -> list[str]:
    """Return the IDs of the tests of a file, without their parameters."""
    names = re.findall(r"^def (test_\w+)", (FOLDER / file).read_text(), re.MULTILINE)
    return [f"{scheduling.FOLDER}{file}::{name}" for name in names]


@pytest.fixture(scope="module")
def nodeids() -> list[str]:
    return [nodeid for path in sorted(FOLDER.glob("test_*.py")) for nodeid in ids_of(path.name)]


def test_both_lists_name_what_exists(nodeids: list[str]) -> None:
    names = [nodeid.removeprefix(scheduling.FOLDER) for nodeid in nodeids]
    for start in (*scheduling.LONGEST_FIRST, *scheduling.ALONE):
        assert any(name.startswith(start) for name in names), start


def test_long_files_start_first_and_single_tests_last(nodeids: list[str]) -> None:
    order = sorted(nodeids, key=scheduling.rank)
    units = list(dict.fromkeys(map(scheduling.unit, order)))
    assert units[0] == f"{scheduling.FOLDER}{scheduling.LONGEST_FIRST[0]}"
    files = [unit for unit in units if "::" not in unit]
    assert units[: len(files)] == files
    assert all(unit in nodeids for unit in units[len(files) :])


def test_tests_of_a_file_that_share_a_deployment_stay_together() -> None:
    units = {scheduling.unit(nodeid) for nodeid in ids_of("test_executors.py")}
    assert units == {f"{scheduling.FOLDER}test_executors.py"}


def test_each_parameter_of_a_single_test_is_a_unit() -> None:
    test = f"{scheduling.FOLDER}test_versions.py::test_every_try_is_accounted_for"
    assert [scheduling.unit(f"{test}[{version}]") for version in ("2.11", "3.0")] == [f"{test}[2.11]", f"{test}[3.0]"]
