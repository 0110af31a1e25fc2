"""The pages on Airflow 3 with a database behind them: lists, one worker, decisions, and who may see and do what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from sqlalchemy import delete, insert, update

from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import attempt, change, engine, worker
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, a_worker, add_run, add_try, record_start
from tests.unit.readers import READABLE, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient

    from tests.unit.database import Database

    ClientOf = Callable[..., TestClient]

LISTS = ["workers", "workers/fragment", "attempts", "attempts/fragment", "waiting", "waiting/fragment"]
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}
DRAIN = {"availability": "draining", "note": "Disk fails"}


@pytest.fixture
def fleet(dags: Database) -> Database:
    """Have two workers that live and that were looked at just now, each with a try of either Dag."""
    with dags.engine.begin() as connection:
        now = database_now(connection)
        looks = [{"name": name, "due_at": now, "looked_at": now} for name in ("celery", "edge", "jobs", "tries")]
        connection.execute(insert(engine), looks)
        for dag_id in (READABLE, SECRET):
            run = add_run(connection, dag_id, state="running", ended_at=None)
            for worker_id in ("w1", "w2"):
                key = add_try(connection, run, f"on_{worker_id}", state="running", started_at=now, ended_at=None)
                record_start(connection, key, a_worker(worker_id), try_started_at=now, state="running", now=now)
        connection.execute(
            update(worker).values(queues=["default"], concurrency=4, running=2, hostname="host-1", state="online")
        )
    return dags


# --- lists ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fleet")
def test_the_list_of_workers(client_of: ClientOf) -> None:
    page = client_of(root="/airflow").get("workers").text
    assert "w1@host-1" in page
    assert "2 workers" in page
    assert 'href="/airflow/worker-insight/workers/w2"' in page
    fragment = client_of().get("workers/fragment").text
    assert fragment.strip().startswith('<div class="wi" id="wi-workers"')
    assert "<html" not in fragment


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("search=W1", ["w1"]),
        ("search=nobody", []),
        ("queue=default", ["w1", "w2"]),
        ("queue=other", []),
        ("label=zone%3Da", ["w1", "w2"]),
        ("label=zone%3Db", []),
        ("kind=celery", ["w1", "w2"]),
        ("kind=edge", []),
        ("hostname=host-1", ["w1", "w2"]),
        ("availability=draining", []),
        ("state=online", ["w1", "w2"]),
        ("state=lost", []),
        ("state=any&seen=any&order=-name", ["w2", "w1"]),
        ("offset=1", ["w2"]),
        ("offset=10000", []),
        ("search=%25", []),
        (f"search={quote(chr(0x1F98A) * 250)}", []),
    ],
)
@pytest.mark.usefixtures("fleet")
def test_filters_and_order_of_workers(client_of: ClientOf, query: str, found: list[str]) -> None:
    answer = client_of().get(f"workers?{query}")
    assert answer.status_code == 200
    links = [part.split('"')[0] for part in answer.text.split('class="wi-name" href="/worker-insight/workers/')[1:]]
    assert links == found


@pytest.mark.parametrize(
    ("by", "name", "address"),
    [
        ("queue", "default", "queue=default"),
        ("hostname", "host-1", "hostname=host-1"),
        ("kind", "celery", "kind=celery"),
        ("label:zone", "a", "label=zone%3Da"),
    ],
)
@pytest.mark.usefixtures("fleet")
def test_groups_of_workers(client_of: ClientOf, by: str, name: str, address: str) -> None:
    page = client_of().get(f"workers?group={by}").text
    assert f'href="/worker-insight/workers?{address}">{name}</a>' in page
    assert "2 workers" in page
    assert "2 online" in page


def test_a_worker_that_left_long_ago_is_found_among_all(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        long_ago = database_now(connection).replace(year=2020)
        connection.execute(
            update(worker)
            .where(worker.c.worker_id == "w2")
            .values(state="lost", last_seen_at=long_ago, ended_at=long_ago)
        )
    client = client_of()
    assert "workers/w2" not in client.get("workers").text
    assert "workers/w2" not in client.get("workers?state=lost").text
    assert "workers/w2" in client.get("workers?state=lost&seen=any").text
    assert "workers/w2" in client.get("workers?state=any&seen=any").text


@pytest.mark.usefixtures("dags")
def test_an_empty_installation_says_why(client_of: ClientOf) -> None:
    assert "No worker is known yet" in client_of().get("workers").text
    assert "No worker is known yet" in client_of().get("workers?group=queue").text
    assert "No try that you may see fits" in client_of().get("attempts").text
    assert "airflow-worker-insight backfill" in client_of().get("attempts?window=any").text


def test_an_installation_without_a_dag_does_not_blame_the_readers_rights(client_of: ClientOf, fleet: Database) -> None:
    from airflow.models.dag import DagModel

    with fleet.engine.begin() as connection:
        connection.execute(delete(attempt))
        connection.execute(delete(DagModel))
    client = client_of()
    assert "No try was recorded yet" in client.get("attempts").text
    page = client.get("workers/w1").text
    assert "Airflow lets you see no task instances" not in page
    assert "No try of this worker was recorded." in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", 4),
        ("dag_id=etl", 2),
        ("dag_id=etl&run_id=run-1&task_id=on_w1", 1),
        ("worker=w1", 2),
        ("worker=w1%40host-1", 2),
        ("worker=nobody", 0),
        ("hostname=host-1", 4),
        ("state=running&window=1h", 4),
        ("state=success", 0),
        ("since=2020-01-01T00%3A00&until=2020-01-02T00%3A00", 0),
        ("since=2020-01-01T00%3A00", 4),
        ("task_id=%27+OR+1%3D1", 0),
    ],
)
@pytest.mark.usefixtures("fleet")
def test_filters_of_tries(client_of: ClientOf, query: str, found: int) -> None:
    answer = client_of().get(f"attempts?{query}")
    assert answer.status_code == 200
    assert answer.text.count('class="wi-try"') == found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("workers?state=sick", "state in the address is none of"),
        ("workers?order=password", "order in the address is none of"),
        ("workers?search=%00", "NUL"),
        ("attempts?dag_id=%00", "NUL"),
        ("attempts?state=%00", "state in the address is none of"),
        ("attempts?since=%00", "since in the address is not a date"),
        ("workers/w1?hours=5", "hours in the address is none of"),
        ("workers/w1?until=0001-01-01", "until in the address"),
        ("attempts?state=sick", "state in the address is none of"),
        ("attempts?since=2026-01-02&until=2026-01-01", "ends before it begins"),
        ("attempts?offset=-1", "offset in the address"),
        ("attempts?worker_id=w1", "“worker_id” is no filter of this page"),
        ("workers/w1?offset=10001", "offset in the address is larger than 10,000"),
    ],
)
@pytest.mark.usefixtures("fleet")
def test_an_address_that_cannot_be_followed_says_why(client_of: ClientOf, path: str, text: str) -> None:
    answer = client_of().get(path)
    assert answer.status_code == 422
    assert text in answer.text


# --- one worker -----------------------------------------------------------------------------------------------------


def test_a_try_of_a_deleted_run_is_marked_and_leads_to_no_other(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        for table in (metadata_database.task_instance_table(), metadata_database.dag_run_table()):
            connection.execute(table.delete())
    for path in ("attempts", "workers/w1"):
        page = client_of().get(path).text
        assert "of a deleted run" in page
        assert ">on_w1</a>" not in page
        assert "on_w1" in page


@pytest.mark.usefixtures("fleet")
def test_the_page_of_a_worker(client_of: ClientOf) -> None:
    page = client_of().get("workers/w1").text
    for text in ("Online", "Running now", "Timeline", "Outcomes per hour", "All tries", "2 tries", "Quarantine"):
        assert text in page
    assert client_of().get("workers/w1?hours=168&until=2026-01-31T08:00Z").status_code == 200
    fragment = client_of().get("workers/w1/fragment").text
    assert fragment.strip().startswith('<div class="wi" id="wi-worker"')


def test_a_lost_worker_shows_what_it_took_with_it(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        now = database_now(connection)
        ref = connection.execute(
            update(worker)
            .where(worker.c.worker_id == "w1")
            .values(state="lost", state_reason="No answer", last_seen_at=now, ended_at=now)
            .returning(worker.c.id)
        ).scalar_one()
        connection.execute(insert(change).values(worker_ref=ref, changed_at=now, state="lost", reason="No answer"))
    page = client_of().get("workers/w1").text
    assert "What it took with it" in page
    assert "2 tries had not ended when it was last seen" in page
    assert "1 try had not ended when it was last seen" in client_of("few jobs").get("workers/w1").text


# --- who may see what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*LISTS, "workers/w1", "workers/w1/fragment"])
@pytest.mark.usefixtures("fleet")
def test_anonymous_is_sent_to_the_login(client_of: ClientOf, path: str) -> None:
    answer = client_of(None).get(path)
    assert answer.status_code == (401 if path.endswith("/fragment") else 307)
    assert "w1" not in answer.text


@pytest.mark.usefixtures("fleet")
def test_who_may_read_every_dag_is_not_made_to_doubt_it(client_of: ClientOf, dags: Database) -> None:
    with dags.engine.begin() as connection:
        connection.execute(delete(attempt))
    all_of_it, some_of_it = (client_of(who).get("workers/w1").text for who in ("admin", "few jobs"))
    assert "Nothing runs on it now." in all_of_it
    assert "No try of this worker was recorded." in all_of_it
    assert "Nothing that you may see runs on it now." in some_of_it


@pytest.mark.usefixtures("fleet")
def test_workers_are_for_those_who_may_see_jobs(client_of: ClientOf) -> None:
    for path in ("workers", "workers/fragment", "workers/w1", "workers/w1/fragment"):
        answer = client_of("few").get(path)
        assert answer.status_code == 403
        assert "w1@" not in answer.text


@pytest.mark.usefixtures("fleet")
def test_tries_of_dags_that_the_reader_may_not_read_are_neither_listed_nor_counted(client_of: ClientOf) -> None:
    few = client_of("few")
    for query in ("", "?worker=w1", "?hostname=host-1", "?state=running", "?window=any"):
        page = few.get(f"attempts{query}").text
        assert SECRET not in page
    assert "2 tries" in few.get("attempts").text
    assert 'class="wi-try"' not in few.get(f"attempts?dag_id={SECRET}").text
    # Whoever may see workers and not each Dag.
    page = client_of("few jobs").get("workers/w1").text
    assert SECRET not in page
    assert "1 try runs on it now." in page
    assert "1 try, at most 1 side by side" in page
    assert "1 try: 1 running" in page


@pytest.mark.usefixtures("fleet")
def test_one_who_may_read_no_dag_sees_the_worker_and_why_there_are_no_tries(client_of: ClientOf) -> None:
    page = client_of("jobs only").get("workers/w1")
    assert page.status_code == 200
    assert "host-1" in page.text
    assert "Airflow lets you see no task instances" in page.text
    assert "run-1" not in page.text
    assert client_of("nobody").get("attempts").status_code == 403


@pytest.mark.usefixtures("fleet")
def test_links_lead_only_where_the_reader_may_go(client_of: ClientOf) -> None:
    page = client_of("few").get("attempts").text
    assert "/worker-insight/workers" not in page
    assert "/worker-insight/panel?" in page


# --- decisions ------------------------------------------------------------------------------------------------------


def decide(client: TestClient, worker_id: str = "w1", headers: Any = SAME_ORIGIN, **form: str) -> Any:
    return client.post(f"workers/{worker_id}/availability", data=form or DRAIN, headers=headers)


@pytest.mark.parametrize("cookie", [False, True])
@pytest.mark.usefixtures("fleet")
def test_a_decision_is_kept_with_its_note_and_author(client_of: ClientOf, cookie: bool) -> None:
    client = client_of(root="/airflow", cookie=cookie)
    answer = decide(client)
    assert (answer.status_code, answer.headers["location"]) == (303, "/airflow/worker-insight/workers/w1")
    page = client.get("workers/w1").text
    assert "Disk fails" in page
    assert "by admin" in page
    listed = client.get("workers?availability=draining").text
    assert "Disk fails" in listed
    assert "workers/w2" not in listed
    decide(client, availability="available", note="")
    assert "workers/w1" not in client.get("workers?availability=draining").text


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "origin": "https://evil.org"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.org"},
        {"origin": "null"},
        {},
    ],
)
def test_a_page_elsewhere_decides_nothing(client_of: ClientOf, fleet: Database, headers: dict[str, str]) -> None:
    answer = decide(client_of(cookie=True), headers=headers)
    assert answer.status_code == 403
    assert "The browser does not say that a page of this server sent this change" in answer.text
    assert {row["availability"] for row in fleet.workers()} == {"available"}


def test_who_may_not_edit_pools_decides_nothing(client_of: ClientOf, fleet: Database) -> None:
    for username in ("few jobs", "few", "nobody"):
        assert decide(client_of(username)).status_code == 403
    assert {row["availability"] for row in fleet.workers()} == {"available"}
    assert "the right to edit Airflow’s pools is needed" in client_of("few jobs").get("workers/w1").text


def test_anonymous_decides_nothing_and_comes_back_to_the_page(client_of: ClientOf, fleet: Database) -> None:
    answer = decide(client_of(None))
    assert answer.status_code == 303
    assert answer.headers["location"] == airflow_auth.login_url("", "/worker-insight/workers/w1")
    assert {row["availability"] for row in fleet.workers()} == {"available"}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"availability": "off"}, "available, draining or quarantined"),
        ({"note": "x"}, "available, draining or quarantined"),
        ({**DRAIN, "note": "n" * 501}, "longer than 500"),
        ({**DRAIN, "other": "n" * 1_000_000}, "larger than any"),
    ],
)
def test_a_form_that_is_none_of_ours_says_why(
    client_of: ClientOf, fleet: Database, form: dict[str, str], text: str
) -> None:
    answer = decide(client_of(), **form)
    assert answer.status_code == 422
    assert text in answer.text
    assert {row["availability"] for row in fleet.workers()} == {"available"}


def test_nothing_is_decided_of_what_is_no_worker(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.worker_id == "w2").values(host_only=True))
    for worker_id in ("unheard-of", "w2", "%3Cb%3E"):
        answer = decide(client_of(), worker_id)
        assert answer.status_code == 404
    assert {row["availability"] for row in fleet.workers()} == {"available"}


def test_what_is_decided_of_a_life_that_is_over_is_refused_with_the_one_that_is_meant(
    client_of: ClientOf, fleet: Database
) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.worker_id == "w2").values(state="lost", ended_at=NOON))
    client = client_of()
    page = client.get("workers/w2").text
    assert ('value="quarantined"' in page, 'value="draining"' in page) == (True, False)
    with fleet.engine.begin() as connection:
        upsert_worker(connection, a_worker("w3", name="w2@host-1", pid=101), now=NOON)
    answer = decide(client, "w2", availability="quarantined", note="")
    assert answer.status_code == 422
    assert "w2 has ended: change w3 instead, the current instance of its name." in answer.text
    assert {row["availability"] for row in fleet.workers()} == {"available"}
