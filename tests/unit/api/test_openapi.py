"""The REST API answers as its OpenAPI document says, whatever it is sent: requests that schemathesis makes up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from airflow_worker_insight import compat

if compat.airflow_version() < (3, 3):
    pytest.skip("the document is the same on every Airflow 3", allow_module_level=True)

import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient
    from schemathesis import Case

    ClientOf = Callable[..., TestClient]

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.ignored_auth,
    checks.positive_data_acceptance,
]
TEXTS = {"dag_id", "run_id", "task_id", "worker_id", "worker_name", "hostname", "kind", "name", "queue", "label"}
"""Parameters that take any text, or nearly any."""

OPERATIONS = [
    ("GET", "/api/v1/attempts"),
    ("GET", "/api/v1/placements"),
    ("GET", "/api/v1/workers"),
    ("GET", "/api/v1/workers/{worker_id}"),
    ("PATCH", "/api/v1/workers/{worker_id}"),
    ("GET", "/api/v1/workers/{worker_id}/attempts"),
    ("GET", "/api/v1/findings"),
    ("GET", "/api/v1/findings/{finding_id}"),
    ("PATCH", "/api/v1/findings/{finding_id}"),
    ("GET", "/api/v1/statistics"),
    ("GET", "/api/v1/services"),
    ("GET", "/api/v1/health"),
]


def _is_of_queues(given: dict[str, object]) -> bool:
    return given.get("group_by") == "queue" and not given.keys() <= {"group_by", "bucket", "to", "limit", "offset"}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.usefixtures("tries")
def test_answers_are_what_the_document_says(client_of: ClientOf, method: str, path: str, mode: str) -> None:
    client = client_of()
    headers = {"Authorization": client.headers["Authorization"]}
    schema = schemathesis.openapi.from_asgi("/worker-insight/openapi.json", client.app, headers=headers)
    operation = schema[path][method]
    # The login is ours to send: made up, it would be all that is wrong with most requests to a list.
    schema.config.generation.with_security_parameters = not (list(operation.query) or list(operation.body))

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    @settings(
        max_examples=15,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Case) -> None:
        given = case.query or {}
        # That a window must not end before it begins cannot be said in the document.
        assume("started_at_gte" not in given or "started_at_lte" not in given)
        # Nor that of statistics, and which filters go with which groups.
        assume(path != "/api/v1/statistics" or not ("from" in given or "state" in given or _is_of_queues(given)))
        # Garbage is refused, and not taken for something else. But in an address all is text: a list or a number in the
        # place of a text is one when it arrives.
        is_text_now = any(name in TEXTS and not isinstance(value, str) for name, value in given.items())
        refused = [checks.negative_data_rejection] if mode == "negative" and not is_text_now else []
        case.call_and_validate(headers=headers, checks=[*CHECKS, *refused])
        if case.path_parameters:
            # With an ID that fits, what was made up may be fine.
            case.path_parameters["worker_id"] = "w1"
            case.call_and_validate(headers=headers, checks=CHECKS)

    send()
