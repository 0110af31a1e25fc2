"""Versions, from what is loaded and from what is installed."""

from __future__ import annotations

import sys
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import __version__
from airflow_worker_insight.identity.versions import versions

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


def module(version: object) -> ModuleType:
    loaded = ModuleType("loaded")
    loaded.__dict__["__version__"] = version
    return loaded


@pytest.fixture
def installed(mocker: MockerFixture) -> dict[str, str]:
    """Return a dict of what is installed, to be filled by the test."""
    distributions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in distributions:
            raise metadata.PackageNotFoundError(name)
        return distributions[name]

    mocker.patch.object(metadata, "version", version)
    return distributions


def test_versions_of_loaded_modules_are_not_looked_up(installed: dict[str, str]) -> None:
    installed["apache-airflow"] = "9.9.9"
    loaded: dict[str, Any] = {
        "airflow": module("3.3.2"),
        "celery": module("5.6.3"),
        "airflow.providers.celery": module("3.24.1"),
        "airflow.providers.edge3": module("4.3.2"),
    }
    common = {"python": ".".join(map(str, sys.version_info[:3])), "provider": __version__, "airflow": "3.3.2"}
    assert versions("local", loaded) == common
    assert versions("celery", loaded) == common | {"celery": "5.6.3", "celery_provider": "3.24.1"}
    assert versions("edge", loaded) == common | {"edge_provider": "4.3.2"}


def test_a_new_interpreter_says_the_same(installed: dict[str, str]) -> None:
    """After ``run_as_user`` Celery is not loaded: the worker must not change its description with each task."""
    installed |= {"celery": "5.6.3", "apache-airflow-providers-celery": "3.24.1"}
    loaded = {"airflow": module("3.3.2")}
    with_celery = loaded | {"celery": module("5.6.3"), "airflow.providers.celery": module("3.24.1")}
    assert versions("celery", loaded) == versions("celery", with_celery)


@pytest.mark.usefixtures("installed")
def test_packages_that_are_not_installed_are_left_out() -> None:
    assert set(versions("celery", {})) == {"python", "provider"}
    assert set(versions("celery", {"airflow": module(None), "celery": None})) == {"python", "provider"}


@pytest.mark.usefixtures("installed")
def test_modules_with_lazy_attributes_import_nothing() -> None:
    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    assert "airflow" not in versions("local", {"airflow": Lazy("airflow")})
