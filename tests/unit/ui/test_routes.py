"""The pages on Airflow 3 with a database behind them, as FastAPI and as Flask serve them.

Lists, one worker, decisions, and what each reader may see and do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import delete, insert, update

from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.statistics import Deltas, Sums, Unit, hour_of
from airflow_worker_insight.fab.reader import FlaskAirflow, FlaskReader
from airflow_worker_insight.insight.findings import Share
from airflow_worker_insight.store import findings, statistics
from airflow_worker_insight.store.attempts import first_tries
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.insight_tables import finding
from airflow_worker_insight.store.session import OutOfTimeError
from airflow_worker_insight.store.tables import attempt, change, worker, worker_source
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, a_worker, add_run, add_try, locked, on_postgresql, record_start
from tests.unit.fab.app import flask_app
from tests.unit.findings import a_finding, a_share
from tests.unit.readers import READABLE, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_mock import MockerFixture

    from airflow_worker_insight.api.reader import Reader
    from tests.unit.database import Database

    ClientOf = Callable[..., httpx.Client]

LISTS = [
    "workers",
    "workers/fragment",
    "insight",
    "insight/fragment",
    "attempts",
    "attempts/fragment",
    "waiting",
    "waiting/fragment",
]
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}
DRAIN = {"availability": "draining", "note": "Disk fails"}


class SignedInReader(FlaskReader):
    """A user of Airflow's auth manager; an anonymous reader without one."""

    @property
    def is_logged_in(self) -> bool:
        return self._user is not None

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        return self.is_logged_in and super().may_see_task_instances(dag_id)

    def may_see_workers(self) -> bool:
        return self.is_logged_in and super().may_see_workers()

    def may_edit_pools(self) -> bool:
        return self.is_logged_in and super().may_edit_pools()


class SignedInAirflow(FlaskAirflow):
    """This Airflow with a user of its auth manager, even if that is not FAB's."""

    def __init__(self, user: Any) -> None:
        super().__init__()
        self._user = user

    def page_reader(self) -> Reader:
        return SignedInReader(self._user)

    def csrf_token(self) -> str:
        return "of-airflow"


def flask_client(username: str | None = "admin", *, root: str = "", cookie: bool = False) -> httpx.Client:  # noqa: ARG001
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    user = None if username is None else SimpleAuthManagerUser(username=username, role="admin")
    app = flask_app(SignedInAirflow(user), root=root)
    mounted = f"{root}/pluginsv2"

    def below(environ: dict[str, Any], start: Any) -> Any:
        return app({**environ, "PATH_INFO": environ["PATH_INFO"].removeprefix(mounted)}, start)

    return httpx.Client(
        transport=httpx.WSGITransport(below), base_url=f"http://airflow{mounted}/workerinsight/", follow_redirects=False
    )


@pytest.fixture(params=["fastapi", "flask"])
def client_of(request: pytest.FixtureRequest, client_of: ClientOf) -> ClientOf:
    """Return a function that gives a client of either web server for the reader of a name."""
    return client_of if request.param == "fastapi" else flask_client


def is_flask(client: httpx.Client) -> bool:
    return "workerinsight" in client.base_url.path


def root_of(client: httpx.Client) -> str:
    """Return the path below which the client's server has the pages."""
    return client.base_url.path.rstrip("/")


@pytest.fixture
def fleet(dags: Database) -> Database:
    """Have two online workers, polled just now, each with a try of either Dag."""
    with dags.engine.begin() as connection:
        now = database_now(connection)
        polls = [{"name": name, "due_at": now, "looked_at": now} for name in ("celery", "edge", "jobs", "tries")]
        connection.execute(insert(worker_source), polls)
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
def test_list_of_workers_has_a_page_and_a_fragment(client_of: ClientOf) -> None:
    client = client_of(root="/airflow")
    page = client.get("workers").text
    assert "w1@host-1" in page
    assert "2 workers" in page
    assert root_of(client).startswith("/airflow/")
    assert f'href="{root_of(client)}/workers/w2"' in page
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
def test_workers_are_filtered_and_sorted(client_of: ClientOf, query: str, found: list[str]) -> None:
    client = client_of()
    answer = client.get(f"workers?{query}")
    assert answer.status_code == 200
    links = [part.split('"')[0] for part in answer.text.split(f'class="wi-name" href="{root_of(client)}/workers/')[1:]]
    assert links == found


@pytest.mark.parametrize(
    ("by", "name", "query"),
    [
        ("queue", "default", "queue=default"),
        ("hostname", "host-1", "hostname=host-1"),
        ("kind", "celery", "kind=celery"),
        ("label:zone", "a", "label=zone%3Da"),
    ],
)
@pytest.mark.usefixtures("fleet")
def test_workers_are_grouped(client_of: ClientOf, by: str, name: str, query: str) -> None:
    client = client_of()
    page = client.get(f"workers?group={by}").text
    assert f'href="{root_of(client)}/workers?{query}">{name}</a>' in page
    assert "2 workers" in page
    assert "2 online" in page


def test_worker_lost_long_ago_is_listed_only_on_demand(client_of: ClientOf, fleet: Database) -> None:
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
def test_lists_of_an_empty_installation_say_what_to_do(client_of: ClientOf) -> None:
    assert "No workers yet" in client_of().get("workers").text
    assert "No workers yet" in client_of().get("workers?group=queue").text
    assert "No try that you can see matches" in client_of().get("attempts").text
    assert "airflow-worker-insight backfill" in client_of().get("attempts?window=any").text


def test_installation_without_dags_does_not_mention_permissions(client_of: ClientOf, fleet: Database) -> None:
    from airflow.models.dag import DagModel

    with fleet.engine.begin() as connection:
        connection.execute(delete(attempt))
        connection.execute(delete(DagModel))
    client = client_of()
    assert "No tries yet" in client.get("attempts").text
    page = client.get("workers/w1").text
    assert "You do not have permission to view task instances" not in page
    assert "No tries recorded for this worker." in page


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
def test_tries_are_filtered(client_of: ClientOf, query: str, found: int) -> None:
    answer = client_of().get(f"attempts?{query}")
    assert answer.status_code == 200
    assert answer.text.count('class="wi-try"') == found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("workers?state=sick", "state in the URL is not one of"),
        ("workers?order=password", "order in the URL is not one of"),
        ("workers?search=%00", "NUL"),
        ("attempts?dag_id=%00", "NUL"),
        ("attempts?state=%00", "state in the URL is not one of"),
        ("attempts?since=%00", "since in the URL is not a date"),
        ("insight?measure=heat", "measure in the URL is not one of"),
        ("insight?offset=10001", "offset in the URL is larger than 10,000"),
        ("workers?findings=closed", "findings in the URL is not one of"),
        ("workers/w1?hours=5", "hours in the URL is not one of"),
        ("workers/w1?until=0001-01-01", "until in the URL"),
        ("attempts?state=sick", "state in the URL is not one of"),
        ("attempts?since=2026-01-02&until=2026-01-01", "ends before it begins"),
        ("attempts?offset=-1", "offset in the URL"),
        ("attempts?worker_id=w1", "“worker_id” is not a filter of this page"),
        ("workers/w1?offset=10001", "offset in the URL is larger than 10,000"),
    ],
)
@pytest.mark.usefixtures("fleet")
def test_invalid_url_is_answered_with_the_reason(client_of: ClientOf, path: str, text: str) -> None:
    answer = client_of().get(path)
    assert answer.status_code == 422
    assert text in answer.text


# --- one worker -----------------------------------------------------------------------------------------------------


def test_try_of_a_deleted_run_is_marked_and_not_linked(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        for table in (metadata_database.task_instance_table(), metadata_database.dag_run_table()):
            connection.execute(table.delete())
    for path in ("attempts", "workers/w1"):
        page = client_of().get(path).text
        assert "Deleted Dag run" in page
        assert ">on_w1</a>" not in page
        assert "on_w1" in page


@pytest.mark.usefixtures("fleet")
def test_worker_has_a_page_and_a_fragment(client_of: ClientOf) -> None:
    page = client_of().get("workers/w1").text
    for text in ("Online", "Running now", "Timeline", "Outcomes per hour", "All tries", "2 tries", "Quarantine"):
        assert text in page
    assert client_of().get("workers/w1?hours=168&until=2026-01-31T08:00Z").status_code == 200
    fragment = client_of().get("workers/w1/fragment").text
    assert fragment.strip().startswith('<div class="wi" id="wi-worker"')


def test_page_of_a_lost_worker_lists_lost_tries(client_of: ClientOf, fleet: Database) -> None:
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
    assert "Lost tries" in page
    assert "2 tries had not ended when the worker was last seen" in page
    assert "1 try had not ended when the worker was last seen" in client_of("few jobs").get("workers/w1").text


# --- findings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def found(fleet: Database) -> int:
    """Have an open finding about w1, in a task of either Dag; return its ID."""
    with fleet.engine.begin() as connection:
        data = a_finding(worker="w1", shares=[a_share(SECRET, "payroll"), a_share(READABLE, "load")])
        (stored,) = findings.sync(connection, [data], now=database_now(connection)).new
    return stored.finding_id


def test_page_of_findings_shows_open_ones_and_the_heat_map(client_of: ClientOf, found: int) -> None:
    client = client_of(root="/airflow")
    page = client.get("insight").text
    assert "1 open finding" in page
    assert "w1@host-1 fails more than its peers on the same tasks" in page
    assert f'href="{root_of(client)}/insight/{found}"' in page
    assert f'action="{root_of(client)}/workers/w1/availability"' in page
    assert "The analysis has not run yet" in page
    assert "Workers by hour" in page
    fragment = client.get("insight/fragment").text
    assert fragment.strip().startswith('<div class="wi" id="wi-insight"')
    assert client.get("insight?measure=utilization").status_code == 200
    assert client.get("insight?measure=queue&offset=10").status_code == 200


@pytest.mark.usefixtures("fleet")
def test_page_of_findings_without_any_says_what_was_compared(client_of: ClientOf) -> None:
    page = client_of().get("insight").text
    assert "Nothing found" in page
    assert "No try has been compared in the last 30 days." in page


def test_heat_map_shows_sums_of_the_latest_hours(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        hour = hour_of(database_now(connection))
        sums = Sums(tries=40, failed=13, expected_failed=1.2, queue_seconds=80.0, queued_tries=40)
        unit = Unit("celery", "w1@host-1", "host-1")
        statistics.add(connection, Deltas({(hour, unit): sums}, {}, {(hour, READABLE, "load"): sums}))
    client = client_of()
    page = client.get("insight").text
    assert '<td class="wi-heat-4">12</td>' in page
    assert "In the last 30 days 40 tries of 1 task on 1 worker were compared." in page
    assert '<td class="wi-heat-1">2s</td>' in client.get("insight?measure=queue").text


def test_page_of_a_finding_names_readable_tasks_only(client_of: ClientOf, found: int) -> None:
    page = client_of("few jobs").get(f"insight/{found}").text
    assert "load" in page
    assert SECRET not in page
    assert "payroll" not in page
    assert "And 1 task that you may not see." in page
    assert "payroll" in client_of().get(f"insight/{found}").text
    fragment = client_of().get(f"insight/{found}/fragment").text
    assert fragment.strip().startswith('<div class="wi" id="wi-finding"')
    for path in ("insight", "insight/fragment", "workers/w1", f"insight/{found}/fragment"):
        for username in ("few jobs", "jobs only"):
            text = client_of(username).get(path).text
            assert (SECRET in text, "payroll" in text) == (False, False)
            assert "w1@host-1 fails more than its peers" in text


@pytest.fixture
def found_task(fleet: Database) -> int:
    """Have an open finding about a task of the secret Dag that ends w1; return its ID."""
    with fleet.engine.begin() as connection:
        data = a_finding(
            dimension="task",
            unit=f"{SECRET}/payroll",
            subject=f"{SECRET}.payroll",
            outcome="lost",
            shares=[Share(("w1@host-1",), 10, 4, 50, 1, 3.8)],
            worker_ids=["w1"],
        )
        (stored,) = findings.sync(connection, [data], now=database_now(connection)).new
    return stored.finding_id


def test_finding_about_a_task_is_hidden_from_those_who_may_not_see_its_dag(
    client_of: ClientOf, found_task: int
) -> None:
    for path in (f"insight/{found_task}", f"insight/{found_task}/fragment"):
        assert client_of("few jobs").get(path).status_code == 404
        assert client_of().get(path).status_code == 200
    assert "payroll" not in client_of("few jobs").get("insight").text
    assert "payroll" in client_of().get("insight").text


def test_finding_about_a_task_offers_no_decision_on_its_workers(client_of: ClientOf, found_task: int) -> None:
    page = client_of().get(f"insight/{found_task}").text
    assert "Its workers are not the cause, so do not drain or quarantine them." in page
    assert "/workers/w1" in page
    assert "/availability" not in page


@pytest.mark.parametrize("finding_id", ["0", "999", "-1", "x", "%00", "9" * 30, "1e3"])
@pytest.mark.usefixtures("found")
def test_unknown_finding_is_not_found(client_of: ClientOf, finding_id: str) -> None:
    client = client_of()
    assert client.get(f"insight/{finding_id}").status_code == 404
    assert client.post(f"insight/{finding_id}/dismiss", headers=SAME_ORIGIN).status_code == 404


def test_workers_with_open_findings_are_marked_and_filtered(client_of: ClientOf, found: int) -> None:
    client = client_of()
    mark = f'class="wi-mark-finding" href="{root_of(client)}/insight/{found}"'
    assert client.get("workers").text.count(mark) == 1
    page = client.get("workers?findings=open").text
    assert "workers/w1" in page
    assert "workers/w2" not in page
    assert "With open findings" in page
    client.post(f"insight/{found}/dismiss", headers=SAME_ORIGIN)
    assert "wi-mark-finding" not in client.get("workers").text
    assert "workers/w1" not in client.get("workers?findings=open").text


@pytest.mark.usefixtures("found")
def test_groups_with_open_findings_are_marked(client_of: ClientOf, fleet: Database) -> None:
    client = client_of()
    # A finding about a worker does not mark its host.
    assert "wi-mark-finding" not in client.get("workers?group=hostname").text
    with fleet.engine.begin() as connection:
        hosts = [
            a_finding(number, dimension="host", unit="host-1", subject="host-1", outcome=outcome)
            for number, outcome in ((2, "failed"), (3, "slow"))
        ]
        stored = findings.sync(connection, [a_finding(worker="w1"), *hosts], now=database_now(connection)).new
    page = client.get("workers?group=hostname").text
    assert f'class="wi-mark-finding" href="{root_of(client)}/insight"' in page
    assert "2 findings</a>" in page
    client.post(f"insight/{stored[0].finding_id}/dismiss", headers=SAME_ORIGIN)
    mark = f'class="wi-mark-finding" href="{root_of(client)}/insight/{stored[1].finding_id}"'
    assert client.get("workers?group=hostname").text.count(mark) == 1
    assert "wi-mark-finding" not in client.get("workers?group=queue").text


def test_dismissed_finding_is_closed_with_note_and_author(client_of: ClientOf, found: int) -> None:
    client = client_of(root="/airflow")
    answer = client.post(f"insight/{found}/dismiss", data={"note": "Known <b>bug</b>"}, headers=SAME_ORIGIN)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{root_of(client)}/insight/{found}")
    page = client.get(f"insight/{found}").text
    assert "Dismissed" in page
    assert "Known &lt;b&gt;bug&lt;/b&gt;" in page
    assert "by admin" in page
    assert "Dismiss this finding" not in page
    assert "Closed findings" in client.get("insight").text
    assert "Closed findings" in client.get("workers/w1").text
    # A second click changes nothing.
    assert client.post(f"insight/{found}/dismiss", headers=SAME_ORIGIN).status_code == 303


def test_dismissal_needs_rights_and_a_page_of_this_server(client_of: ClientOf, found: int) -> None:
    for username in ("few jobs", "few", "nobody"):
        assert client_of(username).post(f"insight/{found}/dismiss", headers=SAME_ORIGIN).status_code == 403
    assert client_of(cookie=True).post(f"insight/{found}/dismiss").status_code == 403
    assert (
        client_of().post(f"insight/{found}/dismiss", data={"note": "n" * 501}, headers=SAME_ORIGIN).status_code == 422
    )
    anonymous = client_of(None)
    answer = anonymous.post(f"insight/{found}/dismiss", headers=SAME_ORIGIN)
    assert answer.headers["location"] == airflow_auth.login_url("", f"{root_of(anonymous)}/insight/{found}")
    page = client_of("few jobs").get("insight").text
    assert "1 open finding" in page
    assert "Dismiss" not in page
    assert "/availability" not in page


# --- whether it is the worker -----------------------------------------------------------------------------------------


@pytest.fixture
def failures(fleet: Database) -> str:
    """Have w1 fail 5 of 6 first tries of a task, and w2 1 of 6; return the panel of a failed one."""
    with fleet.engine.begin() as connection:
        now = database_now(connection)
        for number in range(6):
            run = add_run(connection, READABLE, f"daily-{number}", state="running", ended_at=None)
            for index, worker_id in enumerate(("w1", "w2")):
                state = "failed" if number < (5, 1)[index] else "success"
                key = add_try(connection, run, "load", index, state=state, started_at=now, ended_at=now)
                record_start(connection, key, a_worker(worker_id), try_started_at=now, now=now)
    return f"panel?dag_id={READABLE}&run_id=daily-1&task_id=load&map_index=0"


def test_panel_of_a_failed_try_says_whether_it_is_the_worker(client_of: ClientOf, failures: str) -> None:
    for username in ("admin", "few"):
        page = client_of(username).get(failures).text
        assert "Try 1 failed on w1@host-1" in page
        assert "w1@host-1 fails more than its peers on <code>load</code>: 5 of 6 tries on w1@host-1 failed" in page
    assert "wi-verdict" not in client_of().get(failures.replace("index=0", "index=1")).text


def test_panel_tells_of_an_open_finding_only_those_who_may_see_workers(
    client_of: ClientOf, failures: str, found: int
) -> None:
    client = client_of()
    assert f'<a href="{root_of(client)}/insight/{found}">finding {found}</a>' in client.get(failures).text
    page = client_of("few").get(failures).text
    assert "wi-verdict" in page
    assert "finding" not in page


def test_worker_is_compared_with_its_peers_by_readable_tasks(client_of: ClientOf, failures: str) -> None:
    assert failures
    page = client_of("few jobs").get("workers/w1").text
    assert "This worker against its peers" in page
    assert "5 of 6" in page
    assert "w1@host-1 fails more than its peers on <code>load</code>" in page
    assert "This worker against its peers" not in client_of("jobs only").get("workers/w1").text


def test_worker_that_was_restarted_is_compared_with_itself_before(
    client_of: ClientOf, fleet: Database, failures: str
) -> None:
    assert failures
    with fleet.engine.begin() as connection:
        now = database_now(connection)
        for dag_id, state in ((READABLE, "success"), (SECRET, "failed")):
            run = add_run(connection, dag_id, "after", state="running", ended_at=None)
            key = add_try(connection, run, "load", state=state, started_at=now, ended_at=now)
            record_start(connection, key, a_worker("w1-again", name="w1@host-1"), try_started_at=now, now=now)
    page = " ".join(client_of("few jobs").get("workers/w1-again").text.split())
    assert re.search(r"Before its restart at <time[^>]*>[^<]+</time>: 5 of 7 first tries failed", page)
    assert "Since then: 0 of 1 first try failed (0 %)." in page
    assert "Before its restart" not in client_of("few jobs").get("workers/w1").text


@pytest.mark.parametrize("read", ["of_tasks", "of_worker"])
def test_busy_database_takes_only_the_comparison(
    client_of: ClientOf, failures: str, mocker: MockerFixture, read: str
) -> None:
    mocker.patch.object(first_tries, read, side_effect=OutOfTimeError)
    path = failures if read == "of_tasks" else "workers/w1"
    answer = client_of().get(path)
    assert answer.status_code == 200
    assert "Cannot be told now: the database is busy." in answer.text
    assert "w1@host-1" in answer.text


@on_postgresql
def test_locked_finding_table_takes_only_the_verdict(client_of: ClientOf, failures: str, database: Database) -> None:
    client = client_of()
    with locked(database, finding.name):
        answer = client.get(failures)
    assert answer.status_code == 200
    assert "Cannot be told now: the database is busy." in answer.text
    assert client.get(failures).text.count("Cannot be told now") == 0


# --- permissions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*LISTS, "workers/w1", "workers/w1/fragment", "insight/1", "insight/1/fragment"])
@pytest.mark.usefixtures("fleet")
def test_anonymous_reader_is_sent_to_the_login(client_of: ClientOf, path: str) -> None:
    client = client_of(None)
    answer = client.get(path)
    assert answer.status_code == (401 if path.endswith("/fragment") else 302 if is_flask(client) else 307)
    # Flask's redirect repeats the path, so look for the name and the host.
    assert "w1@" not in answer.text
    assert "host-1" not in answer.text


@pytest.mark.usefixtures("fleet")
def test_empty_lists_mention_permissions_only_if_some_dags_are_hidden(client_of: ClientOf, dags: Database) -> None:
    with dags.engine.begin() as connection:
        connection.execute(delete(attempt))
    all_of_it, some_of_it = (client_of(who).get("workers/w1").text for who in ("admin", "few jobs"))
    assert "No try is running." in all_of_it
    assert "No tries recorded for this worker." in all_of_it
    assert "No try that you can see is running." in some_of_it


@pytest.mark.usefixtures("fleet")
def test_workers_need_permission_for_jobs(client_of: ClientOf) -> None:
    paths = ["workers", "workers/fragment", "workers/w1", "workers/w1/fragment"]
    for path in (*paths, "insight", "insight/fragment", "insight/1", "insight/1/fragment"):
        answer = client_of("few").get(path)
        assert answer.status_code == 403
        assert "w1@" not in answer.text


@pytest.mark.usefixtures("fleet")
def test_tries_of_hidden_dags_are_neither_listed_nor_counted(client_of: ClientOf) -> None:
    few = client_of("few")
    for query in ("", "?worker=w1", "?hostname=host-1", "?state=running", "?window=any"):
        page = few.get(f"attempts{query}").text
        assert SECRET not in page
    assert "2 tries" in few.get("attempts").text
    assert 'class="wi-try"' not in few.get(f"attempts?dag_id={SECRET}").text
    # Whoever may see workers and not each Dag.
    page = client_of("few jobs").get("workers/w1").text
    assert SECRET not in page
    assert "1 try is running." in page
    assert "1 try, at most 1 in parallel" in page
    assert "1 try: 1 running" in page


@pytest.mark.usefixtures("fleet")
def test_reader_of_no_dag_sees_the_worker_and_why_tries_are_missing(client_of: ClientOf) -> None:
    page = client_of("jobs only").get("workers/w1")
    assert page.status_code == 200
    assert "host-1" in page.text
    assert "You do not have permission to view task instances" in page.text
    assert "run-1" not in page.text
    assert client_of("nobody").get("attempts").status_code == 403


@pytest.mark.usefixtures("fleet")
def test_pages_without_permission_are_not_linked(client_of: ClientOf) -> None:
    client = client_of("few")
    page = client.get("attempts").text
    assert f"{root_of(client)}/workers" not in page
    assert f"{root_of(client)}/insight" not in page
    assert f"{root_of(client)}/panel?" in page


# --- decisions ------------------------------------------------------------------------------------------------------


def decide(client: httpx.Client, worker_id: str = "w1", headers: Any = SAME_ORIGIN, **form: str) -> Any:
    return client.post(f"workers/{worker_id}/availability", data=form or DRAIN, headers=headers)


@pytest.mark.parametrize("cookie", [False, True])
@pytest.mark.usefixtures("fleet")
def test_decision_is_stored_with_its_note_and_author(client_of: ClientOf, cookie: bool) -> None:
    client = client_of(root="/airflow", cookie=cookie)
    answer = decide(client)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{root_of(client)}/workers/w1")
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
def test_decision_from_another_site_is_refused(client_of: ClientOf, fleet: Database, headers: dict[str, str]) -> None:
    answer = decide(client_of(cookie=True), headers=headers)
    assert answer.status_code == 403
    assert "The change was not saved, because the browser did not confirm" in answer.text
    assert {row["availability"] for row in fleet.workers()} == {"available"}


def test_decision_needs_permission_to_edit_pools(client_of: ClientOf, fleet: Database) -> None:
    for username in ("few jobs", "few", "nobody"):
        assert decide(client_of(username)).status_code == 403
    assert {row["availability"] for row in fleet.workers()} == {"available"}
    assert "You need permission to edit Airflow’s pools" in client_of("few jobs").get("workers/w1").text


def test_anonymous_decision_leads_to_the_login_and_back(client_of: ClientOf, fleet: Database) -> None:
    client = client_of(None)
    answer = decide(client)
    assert answer.status_code == (302 if is_flask(client) else 303)
    assert answer.headers["location"] == airflow_auth.login_url("", f"{root_of(client)}/workers/w1")
    assert {row["availability"] for row in fleet.workers()} == {"available"}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"availability": "off"}, "available, draining or quarantined"),
        ({"note": "x"}, "available, draining or quarantined"),
        ({**DRAIN, "note": "n" * 501}, "longer than 500"),
    ],
)
def test_invalid_form_is_refused_with_the_reason(
    client_of: ClientOf, fleet: Database, form: dict[str, str], text: str
) -> None:
    answer = decide(client_of(), **form)
    assert answer.status_code == 422
    assert text in answer.text
    assert {row["availability"] for row in fleet.workers()} == {"available"}


def test_large_form_is_refused(client_of: ClientOf, fleet: Database) -> None:
    client = client_of()
    if is_flask(client):
        pytest.skip("Airflow's Flask app reads the form, with its own limit")
    answer = decide(client, **DRAIN, other="n" * 1_000_000)
    assert answer.status_code == 422
    assert "longer than 16384 bytes" in answer.text
    assert {row["availability"] for row in fleet.workers()} == {"available"}


def test_decision_on_an_unknown_worker_or_a_host_is_refused(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.worker_id == "w2").values(host_only=True))
    for worker_id in ("unheard-of", "%3Cb%3E"):
        assert decide(client_of(), worker_id).status_code == 404
    answer = decide(client_of(), "w2")
    assert (answer.status_code, "all workers of a host" in answer.text) == (422, True)
    assert {row["availability"] for row in fleet.workers()} == {"available"}


def test_decision_on_an_ended_instance_is_refused_with_the_current_one(client_of: ClientOf, fleet: Database) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.worker_id == "w2").values(state="lost", ended_at=NOON))
    client = client_of()
    page = client.get("workers/w2").text
    assert ('value="quarantined"' in page, 'value="draining"' in page) == (True, False)
    with fleet.engine.begin() as connection:
        upsert_worker(connection, a_worker("w3", name="w2@host-1", pid=101), now=NOON)
    answer = decide(client, "w2", availability="quarantined", note="")
    assert answer.status_code == 422
    # The URL is right.
    assert "Invalid request" in answer.text
    assert "w2 has ended: change w3 instead, the current instance of its name." in answer.text
    assert {row["availability"] for row in fleet.workers()} == {"available"}
