"""How long others' locks are waited for. On PostgreSQL the claim's tests try it; there is no MySQL to try it with."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.store.locks import short_waits


class FakeMySQL:
    """A connection that remembers what is set, and has waited for 50 seconds before."""

    dialect = SimpleNamespace(name="mysql")

    def __init__(self) -> None:
        self.set: list[str] = []

    def execute(self, statement: Any, values: dict[str, Any] | None = None) -> Any:
        sql = str(statement)
        for name, value in (values or {}).items():
            sql = sql.replace(f":{name}", str(value))
        return self.exec_driver_sql(sql)

    def exec_driver_sql(self, sql: str) -> Any:
        if sql.startswith("SET"):
            self.set.append(sql.rpartition(" ")[2])
        return SimpleNamespace(scalar_one=lambda: 50)


def test_on_mysql_the_connection_gets_its_patience_back_whatever_happens() -> None:
    connection = FakeMySQL()

    def wait() -> None:
        with short_waits(connection):  # type: ignore[arg-type]
            assert connection.set == ["1"]
            raise ValueError("locked")

    with pytest.raises(ValueError, match="locked"):
        wait()
    assert connection.set == ["1", "50"]


def test_on_mysql_a_transaction_of_our_own_waits_briefly_too(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeMySQL()
    monkeypatch.setattr(compat, "engine", lambda: SimpleNamespace(begin=lambda: nullcontext(connection)))
    with compat.short_transaction():
        assert connection.set == ["1"]
    assert connection.set == ["1", "50"]
