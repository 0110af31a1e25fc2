"""Workers and tries as lists of Flask-AppBuilder, with its own filters, search, order and paging (Airflow 2.11).

They read through the store like every other page and not from the tables: whether a worker's state still counts, the
state that Airflow has for a try at this moment, and the workers of one try are all put together there. So this is a
data model of Flask-AppBuilder's own kind over the store's functions. The rights are asked as for the other pages.

Airflow 3 has no such lists: from 3.1 on its FAB views do not share the session of the login, so that Flask-AppBuilder
knows nobody there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from flask_appbuilder import ModelView
from flask_appbuilder.models.base import BaseInterface
from flask_appbuilder.models.filters import BaseFilter, BaseFilterConverter
from flask_appbuilder.urltools import get_filter_args, get_page_args, get_page_size_args
from flask_babel import lazy_gettext
from markupsafe import Markup

from airflow_worker_insight.api import database
from airflow_worker_insight.compat import fab as airflow_fab
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.filters import AttemptFilter, WorkerFilter
from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.states import AVAILABILITIES, UNKNOWN_STATE, WORKER_STATES
from airflow_worker_insight.fab.views import Reader, in_airflows_page, page, route, urls
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import BadAddress
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flask import Response

    from airflow_worker_insight.domain.attempts import Attempt
    from airflow_worker_insight.domain.workers import WorkerRow

TEXT, TIME = "text", "time"


# --- filters --------------------------------------------------------------------------------------------------------


class Asked(dict[str, Any]):
    """What a list is filtered by, as Flask-AppBuilder's filters gather it; ``None`` stands for what nothing can be."""


class _Filter(BaseFilter):  # type: ignore[misc]
    """A filter that writes its value under a key of what is asked for."""

    suffix = ""

    def apply(self, query: Asked, value: Any) -> Asked:
        key = f"{self.column_name}{self.suffix}"
        # Nothing is equal to two values, and nothing that is stored has a NUL in it: databases refuse to look for one.
        is_possible = query.get(key, value) == value and "\0" not in value
        return Asked({**query, key: value if is_possible else None})


class _Equal(_Filter):
    name = lazy_gettext("Equal to")


class _Contains(_Filter):
    name = lazy_gettext("Contains")
    suffix = "_contains"


class _Time(_Filter):
    """A filter of points in time; of several the narrowest counts."""

    narrowest: Callable[[datetime, datetime], datetime]

    def apply(self, query: Asked, value: Any) -> Asked:
        key, found = f"{self.column_name}{self.suffix}", _moment(value)
        return query if found is None else Asked({**query, key: self.narrowest(query.get(key, found), found)})


class _After(_Time):
    name = lazy_gettext("Greater than")
    suffix = "_gte"
    narrowest = staticmethod(max)


class _Before(_Time):
    name = lazy_gettext("Smaller than")
    suffix = "_lte"
    narrowest = staticmethod(min)


class _Filters(BaseFilterConverter):  # type: ignore[misc]
    conversion_table = (("is_searched", [_Contains]), ("is_datetime", [_After, _Before]), ("is_string", [_Equal]))


# --- data models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a list: the texts of its columns, by name."""

    pk: str
    texts: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Return a column's text, as Flask-AppBuilder asks for it."""
        try:
            return self.texts[name]
        except KeyError:
            raise AttributeError(name) from None


class _Store(BaseInterface):  # type: ignore[misc]
    """A read-only data model over the store."""

    filter_converter_class = _Filters
    columns: ClassVar[dict[str, str]]
    searched: ClassVar[frozenset[str]] = frozenset()
    ordered: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__(Row)

    def is_searched(self, name: str) -> bool:
        """Return whether a part of the value is looked for, and not all of it."""
        return name in self.searched

    def is_string(self, name: str) -> bool:
        return self.columns[name] == TEXT

    def is_datetime(self, name: str) -> bool:
        return self.columns[name] == TIME

    def is_utcdatetime(self, name: str) -> bool:
        """Return whether Airflow's own field for points in time is to be shown, which knows time zones."""
        return self.is_datetime(name)

    def is_nullable(self, name: str) -> bool:  # noqa: ARG002
        return True

    def get_columns_list(self) -> list[str]:
        return list(self.columns)

    get_search_columns_list = get_columns_list

    def get_order_columns_list(self, list_columns: list[str] | None = None) -> list[str]:  # noqa: ARG002
        return list(self.ordered)

    def is_pk_composite(self) -> bool:
        return False

    def get_pk_name(self) -> str:
        return "pk"

    def query(
        self,
        filters: Any = None,
        order_column: str = "",
        order_direction: str = "",
        page: int | None = None,
        page_size: int | None = None,
        **_: Any,
    ) -> tuple[int, list[Row]]:
        """Return how many rows there are and those of a page."""
        asked = Asked() if filters is None else filters.apply_all(Asked())
        if None in asked.values() or (order_column and order_column not in self.ordered):
            return 0, []
        size = min(max(page_size or 100, 1), 1000)
        offset = min(max(page or 0, 0) * size, MAX_TOTAL)
        order = f"-{order_column}" if order_direction == "desc" else order_column
        return self.rows(asked, order, limit=size, offset=offset)

    def rows(self, asked: Asked, order: str, *, limit: int, offset: int) -> tuple[int, list[Row]]:
        """Return how many rows the store has of what is asked for, and some of them."""
        raise NotImplementedError


class Workers(_Store):
    """The workers."""

    columns: ClassVar = {
        "state": TEXT,
        "name": TEXT,
        "kind": TEXT,
        "hostname": TEXT,
        "queue": TEXT,
        "label": TEXT,
        "running": TEXT,
        "availability": TEXT,
        "last_seen_at": TIME,
    }
    searched: ClassVar = frozenset({"name"})
    ordered: ClassVar = ("state", "name", "kind", "hostname", "running", "last_seen_at")

    def rows(self, asked: Asked, order: str, *, limit: int, offset: int) -> tuple[int, list[Row]]:
        """Read the list."""
        states = (*WORKER_STATES, UNKNOWN_STATE)
        state = _stored(asked.get("state"), states, formatting.worker_state)
        availability = _stored(asked.get("availability"), AVAILABILITIES, str)
        key, _, value = asked.get("label", "").partition("=")
        if state not in {None, *states} or availability not in {None, *AVAILABILITIES}:
            return 0, []
        filters = WorkerFilter(
            states=None if state is None else frozenset({state}),
            search=asked.get("name_contains"),
            kind=_stored(asked.get("kind"), formatting.KINDS, formatting.kind),
            hostname=asked.get("hostname"),
            queue=asked.get("queue"),
            label=(key.strip(), value.strip()) if key else None,
            availability=availability,
            last_seen_at_gte=asked.get("last_seen_at_gte"),
            last_seen_at_lte=asked.get("last_seen_at_lte"),
        )
        with database.reading() as connection:
            found, total = worker_queries.list_workers(
                connection, filters, order_by=order or "name", limit=limit, offset=offset
            )
        return total, [_worker(one) for one in found]


class Attempts(_Store):
    """The tries of the Dags that the reader may read."""

    columns: ClassVar = {
        "dag_id": TEXT,
        "run_id": TEXT,
        "task_id": TEXT,
        "try_number": TEXT,
        "state": TEXT,
        "worker_name": TEXT,
        "hostname": TEXT,
        "started_at": TIME,
        "duration": TEXT,
    }

    def rows(self, asked: Asked, order: str, *, limit: int, offset: int) -> tuple[int, list[Row]]:  # noqa: ARG002
        """Read the list."""
        reader = Reader(airflow_fab.flask_user())
        states = metadata_database.task_instance_states()
        state, number = _stored(asked.get("state"), states, formatting.state), asked.get("try_number", "")
        if state not in {None, *states} or not (number == "" or number.isdecimal()):
            return 0, []
        filters = AttemptFilter(
            **{name: asked.get(name) for name in ("dag_id", "run_id", "task_id", "worker_name", "hostname")},
            state=state,
            try_number=min(int(number), 2**31 - 1) if number else None,
            started_at_gte=asked.get("started_at_gte"),
            started_at_lte=asked.get("started_at_lte"),
        )
        dag_ids = reader.readable_dag_ids()
        with database.reading() as connection:
            found, total = attempt_queries.list_attempts(
                connection, filters, dag_ids=dag_ids, limit=limit, offset=offset
            )
        url = urls(reader)
        return total, [_attempt(one, url) for one in found]


def _stored(value: str | None, keys: Iterable[str], shown: Callable[[str], str]) -> str | None:
    """Return what is stored for a word that was written as it is stored or as the list shows it, in any case."""
    written = "" if value is None else value.strip().casefold()
    return next((key for key in keys if written in (key.casefold(), shown(key).casefold())), value)


def _moment(value: Any) -> datetime | None:
    """Return what Flask-AppBuilder's field for a date holds; one that is none does not filter, as in its own lists."""
    if not value:
        return None
    try:
        found = datetime.fromisoformat(str(value))
        return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def _worker(one: WorkerRow) -> Row:
    url = urls(Reader(airflow_fab.flask_user()))
    running = (
        "" if one.running is None else f"{one.running:,} / {one.concurrency:,}" if one.concurrency else one.running
    )
    return Row(
        one.worker_id,
        {
            "state": _with_title(formatting.worker_state(one.state), one.state_reason),
            "name": _link(url("worker", worker_id=one.worker_id), one.name),
            "kind": formatting.kind(one.kind),
            "hostname": one.hostname,
            "queue": ", ".join(one.queues or ()),
            "label": ", ".join(f"{key}={value}" for key, value in sorted(one.labels.items())),
            "running": running,
            "availability": one.availability,
            "last_seen_at": _time(one.last_seen_at),
        },
    )


def _attempt(one: Attempt, url: Any) -> Row:
    panel = url(
        "panel",
        dag_id=one.dag_id,
        run_id=one.run_id,
        task_id=one.task_id,
        map_index=one.map_index,
        try_number=one.try_number,
    )
    task = one.task_id if one.map_index < 0 else f"{one.task_id} [{one.map_index}]"
    return Row(
        panel,
        {
            "dag_id": one.dag_id,
            "run_id": one.run_id,
            "task_id": _link(panel, task),
            "try_number": one.try_number,
            "state": formatting.state(one.state),
            "worker_name": Markup(", ").join(
                _link(url("worker", worker_id=by.worker_id), by.name) for by in one.workers
            ),
            "hostname": ", ".join(dict.fromkeys(by.hostname for by in one.workers)),
            "started_at": _time(one.started_at),
            "duration": "" if one.duration is None else formatting.duration(one.duration),
        },
    )


def _link(address: str | None, text: str) -> Markup:
    return Markup('<a href="{}">{}</a>').format(address, text) if address else Markup("{}").format(text)


def _with_title(text: str, title: str | None) -> Markup:
    return Markup('<span title="{}">{}</span>').format(title or "", text)


def _time(value: datetime | None) -> Markup:
    moment = formatting.moment(value)
    # Airflow's script shows it in the reader's zone.
    return Markup("") if moment is None else Markup('<time datetime="{}">{}</time>').format(moment.iso, moment.text)


# --- views ----------------------------------------------------------------------------------------------------------


class _List(ModelView):  # type: ignore[misc]
    """A list that is looked at and not changed."""

    include_route_methods: ClassVar = {"list"}
    # No permissions of its own: the reader asks for those of Airflow's.
    base_permissions: ClassVar[list[str]] = []
    list_widget = airflow_fab.flask_list_widget()
    page_size = 50
    beside = ""
    """The page that shows the same at a glance."""

    def show_list(self) -> Response:
        """Return the page of the list.

        :raises BadAddress: when Flask-AppBuilder could not read the address
        """
        try:
            get_page_args(), get_page_size_args(), get_filter_args(self._filters)
        except (ValueError, IndexError):
            text = "A page or its size in the address is not a whole number, or a filter is none that there is."
            raise BadAddress(text) from None
        self.update_redirect()
        return in_airflows_page(
            self,
            "fab_list.html",
            title=self.list_title,
            widgets=self._list(),
            beside=urls(Reader(airflow_fab.flask_user()))(self.beside),
        )


class WorkerListView(_List):
    """The list of workers."""

    route_base = f"{FLASK_URL_PREFIX}/list/workers"
    datamodel = Workers()
    list_title = "Workers"
    list_columns: ClassVar = list(Workers.columns)
    search_exclude_columns: ClassVar = ["running"]
    label_columns: ClassVar = {"hostname": "Host", "queue": "Queues", "label": "Labels", "last_seen_at": "Last seen"}
    base_order = ("name", "asc")
    beside = "workers"

    @route("/")
    @page
    def list(self) -> Response:
        """Show the workers."""
        Reader(airflow_fab.flask_user()).require_workers()
        return self.show_list()


class AttemptListView(_List):
    """The list of tries."""

    route_base = f"{FLASK_URL_PREFIX}/list/attempts"
    datamodel = Attempts()
    list_title = "Attempts"
    list_columns: ClassVar = list(Attempts.columns)
    search_exclude_columns: ClassVar = ["duration"]
    label_columns: ClassVar = {
        "dag_id": "Dag",
        "run_id": "Run",
        "task_id": "Task",
        "try_number": "Try",
        "worker_name": "Worker",
        "hostname": "Host",
        "started_at": "Started",
    }
    beside = "attempts"

    @route("/")
    @page
    def list(self) -> Response:
        """Show the tries of the Dags that the reader may read, the latest start first."""
        Reader(airflow_fab.flask_user()).require_task_instances()
        return self.show_list()


def views() -> list[ModelView]:
    """Return the lists, without places in the menu."""
    return [WorkerListView(), AttemptListView()]
