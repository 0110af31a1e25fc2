"""Environments with the wheel of this tree, and servers, for the benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import environments
from tests.support.environments import Environment
from tests.support.services import Postgres, Redis

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.support.deployment import Deployment

INSIDE = Path(__file__).parent / "inside"

OPENLINEAGE = environments.CONSTRAINTS / "bench.txt"


@dataclass
class Setting:
    """Makes each thing when it is first used; everything ends with ``stack``."""

    stack: ExitStack
    quick: bool = False
    attempts: tuple[int, ...] = ()
    """Sizes of the attempt table from the command line, instead of a benchmark's own."""

    def sizes(self, full: tuple[int, ...], quick: tuple[int, ...]) -> tuple[int, ...]:
        """Choose the sizes of the attempt table."""
        return self.attempts or (quick if self.quick else full)

    def size(self, full: int, quick: int) -> int:
        """Choose a size."""
        return quick if self.quick else full

    @cached_property
    def postgres(self) -> Postgres:
        """A PostgreSQL server."""
        return self.stack.enter_context(Postgres())

    @cached_property
    def redis(self) -> Redis:
        """A Redis server."""
        return self.stack.enter_context(Redis())

    @cached_property
    def wheel(self) -> Path:
        """The wheel of this source tree."""
        return environments.wheel()

    def environment(self, version: str = environments.LATEST_AIRFLOW) -> Environment:
        """Return an Airflow with this project installed from its wheel."""
        return environments.installed(version, package=self.wheel)

    def environment_with_openlineage(self, version: str) -> Environment:
        """Return the same with OpenLineage's provider on top."""
        base = self.environment(version)
        name = f"{base.path.name}-openlineage-{environments._key(OPENLINEAGE)}"
        with environments._made(name) as (path, fresh):
            if fresh:
                environments._stack(base.path, path)
                environments._install(path, "--no-deps", "--requirement", OPENLINEAGE)
        return Environment(version, path, base.wheel)


def probe(deployment: Deployment, script: str, *args: str, timeout: float = 900) -> Any:
    """Run a script of ``inside`` with a deployment's configuration and return its result."""
    output = deployment.home / f"{script}.json"
    deployment.run("python", INSIDE / f"{script}.py", "--output", output, *args, timeout=timeout)
    return json.loads(output.read_text())


def distributions(environment: Environment, *names: str) -> dict[str, str]:
    """Return the versions of installed distributions, and of Python."""
    program = (
        "import json, sys, platform\n"
        "from importlib.metadata import version\n"
        "print(json.dumps({'python': platform.python_version(), **{n: version(n) for n in sys.argv[1:]}}))"
    )
    found: dict[str, str] = json.loads(environment.run("-c", program, *names))
    return found
