"""
Virtual environments for tests, demo and tools, made once and kept below ``.build/``.

This module needs nothing but the standard library, because it runs before there is anything else::

    python3 -m tests.support.environments tools            # uv (if it can be had) and hatchling
    python3 -m tests.support.environments dev               # Airflow 3.3 + test tools + this project, editable
    python3 -m tests.support.environments airflow 2.11.2    # a bare Airflow, by our constraints
    python3 -m tests.support.environments installed 3.3.2   # the same with this project's wheel
    python3 -m tests.support.environments wheel             # builds the wheel
    python3 -m tests.support.environments docs              # what builds the documentation

Each prints the path of what it made. A folder's name holds a hash of everything that decides its content, so an
environment is reused until its constraints change and is never changed in place. A wheel is not installed *into*
the environment of its Airflow: it gets a thin environment of its own stacked on top, so that two test sessions
with two wheels never pull the package from under each other.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / ".build"
CONSTRAINTS = ROOT / "constraints"

#: The releases that the project is tested with: one for each minor version that it supports.
AIRFLOW_VERSIONS = ("2.11.2", "3.0.6", "3.1.8", "3.2.2", "3.3.2")
LATEST_AIRFLOW = AIRFLOW_VERSIONS[-1]

#: What an extra of an environment adds to a bare Airflow. Versions come from the constraints.
EXTRAS: dict[str, tuple[str, ...]] = {
    "celery": ("apache-airflow-providers-celery", "redis"),
    "edge": ("apache-airflow-providers-edge3",),
    "fab": ("apache-airflow-providers-fab",),
    "postgres": ("apache-airflow-providers-postgres", "psycopg2-binary"),
}
ALL_EXTRAS = tuple(EXTRAS)

#: Variables of the caller that would change what our interpreters import, or keep them from writing bytecode.
FOREIGN_VARIABLES = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "VIRTUAL_ENV"})

#: Raise it when the way an environment is laid out changes, so that old ones are not reused.
LAYOUT = 2


class EnvironmentFailedError(RuntimeError):
    """An environment could not be made; the message ends with what the failed command printed."""


@dataclass(frozen=True)
class Environment:
    """One virtual environment with one Airflow in it."""

    version: str
    path: Path
    wheel: Path | None = None

    @property
    def bin(self) -> Path:
        """The folder of the environment's commands."""
        return self.path / "bin"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.bin / "python"

    @property
    def airflow_version(self) -> tuple[int, ...]:
        """The version of Airflow, to be compared: ``(3, 3, 2)``."""
        return tuple(int(part) for part in self.version.split("."))

    def command(self, name: str) -> str:
        """Return the path of one of the environment's commands."""
        path = self.bin / name
        if not path.exists():
            raise EnvironmentFailedError(f"{self.path} has no command {name!r}")
        return str(path)

    def run(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 300,
    ) -> str:
        """Run the environment's Python with ``args`` and return what it printed."""
        return _run([self.python, *args], env=env, cwd=cwd or self.path, timeout=timeout)


# --------------------------------------------------------------------------- environments


def tools() -> Path:
    """Return the interpreter of the environment with hatchling and, where available, uv."""
    pins = CONSTRAINTS / "dev.txt"
    with _made(f"tools-{_key(pins)}") as (path, fresh):
        if fresh:
            _require_ensurepip()
            _run([sys.executable, "-m", "venv", path])
            pip = [path / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", pins]
            _run([*pip, "hatchling"])
            # Without uv everything is the same, only slower.
            with contextlib.suppress(EnvironmentFailedError):
                _run([*pip, "uv"])
        return path / "bin" / "python"


def wheel(into: Path | None = None) -> Path:
    """Build the wheel of this source tree; an unchanged tree gives the same path."""
    with tempfile.TemporaryDirectory(prefix="worker-insight-wheel-") as scratch:
        _run([tools(), "-m", "hatchling", "build", "--target", "wheel", "--directory", scratch], cwd=ROOT)
        built = next(Path(scratch).glob("*.whl"))
        folder = into or BUILD / "wheels" / hashlib.sha256(built.read_bytes()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / built.name
        if into is not None or not target.exists():
            # Copied beside it and renamed: another session may be reading the same wheel.
            partial = folder / f".{os.getpid()}-{built.name}"
            shutil.copyfile(built, partial)
            partial.replace(target)
    return target


def airflow(version: str = LATEST_AIRFLOW, extras: Sequence[str] = ALL_EXTRAS) -> Environment:
    """Make, or find, the environment of an Airflow with these extras, without this project."""
    constraints = CONSTRAINTS / f"airflow-{version}.txt"
    if not constraints.exists():
        raise EnvironmentFailedError(f"there are no constraints for Airflow {version}: {constraints} is missing")
    requirements = [
        f"apache-airflow=={version}",
        "apache-airflow-providers-standard",
        *(name for extra in sorted(extras) for name in EXTRAS[extra]),
    ]
    with _made(f"airflow-{version}-{_key(constraints, *requirements)}") as (path, fresh):
        if fresh:
            _venv(path)
            _install(path, "--constraint", constraints, *requirements)
    return Environment(version, path)


def installed(
    version: str = LATEST_AIRFLOW,
    extras: Sequence[str] = ALL_EXTRAS,
    *,
    package: Path | None = None,
) -> Environment:
    """Make, or find, the environment of an Airflow with this project's wheel."""
    package = package or wheel()
    base = airflow(version, extras)
    with _made(f"{base.path.name}-with-{_key(package)}") as (path, fresh):
        if fresh:
            _stack(base.path, path)
            _install(path, "--no-deps", package)
    return Environment(version, path, package)


def dev(version: str = LATEST_AIRFLOW) -> Environment:
    """
    Make, or find, the environment of unit tests and tools, with this tree editable.

    For another version than the newest the test tools are held to what that Airflow's constraints allow.
    """
    constraints, pins = CONSTRAINTS / f"airflow-{version}.txt", CONSTRAINTS / "dev.txt"
    base = airflow(version)
    name = f"dev-{version}-{_key(constraints, pins, base.path.name)}"
    with _made(name) as (path, fresh):
        if fresh:
            _stack(base.path, path)
            if version == LATEST_AIRFLOW:
                _install(path, "--no-deps", "--requirement", pins)
            else:
                held = {_name(line) for line in constraints.read_text().splitlines()}
                free = [line for line in pins.read_text().splitlines() if _name(line) not in held]
                _install(path, "--no-deps", *free)
    with _made(name) as (path, _):
        # The entry points are read from the metadata of an installed package: refresh them when they may differ.
        stamp = path / "project"
        current = _key(ROOT / "pyproject.toml", ROOT / "airflow_worker_insight" / "__init__.py")
        if not stamp.exists() or stamp.read_text() != current:
            _install(path, "--no-deps", "--no-build-isolation", "--editable", ROOT)
            stamp.write_text(current)
    return Environment(version, path)


def docs() -> Path:
    """Make, or find, the environment that builds the documentation, without Airflow."""
    pins = CONSTRAINTS / "docs.txt"
    with _made(f"docs-{_key(pins)}") as (path, fresh):
        if fresh:
            _venv(path)
            _install(path, "--no-deps", "--requirement", pins)
    return path


# --------------------------------------------------------------------------- tools


@contextlib.contextmanager
def _made(name: str) -> Iterator[tuple[Path, bool]]:
    """Yield an environment's folder and whether it is still empty, to one process at a time."""
    folder = BUILD / "envs"
    folder.mkdir(parents=True, exist_ok=True)
    path, done = folder / name, folder / name / ".complete"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh = not done.exists()
        if fresh and path.exists():
            shutil.rmtree(path)
        yield path, fresh
        if fresh:
            done.touch()


def _key(*parts: Path | str) -> str:
    """Hash what decides an environment: files by their content, strings as they are."""
    digest = hashlib.sha256(f"{LAYOUT}\n{sys.version}\n{sys.platform}\n".encode())
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def _name(requirement: str) -> str:
    return requirement.partition("==")[0].strip().lower()


@functools.cache
def _uv() -> str | None:
    """Return the command of uv in the tools' environment, or None where it could not be had."""
    command = tools().parent / "uv"
    return str(command) if command.exists() else None


def _venv(path: Path) -> None:
    """Make an empty environment, without pip: the tools install into it from outside."""
    _run([sys.executable, "-m", "venv", "--without-pip", path])


def _install(path: Path, *args: str | Path) -> None:
    """Install into an environment with uv, or else with the tools' pip."""
    python = path / "bin" / "python"
    if command := _uv():
        _run([command, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *args], timeout=1800)
    else:
        _run([tools(), "-m", "pip", "--python", python, "install", "--quiet", *args], timeout=1800)


def _stack(base: Path, path: Path) -> None:
    """Make an environment on top of ``base``, to which more can be added."""
    _venv(path)
    # Its scripts name the folder that it was made in, which may be reached through a link.
    base = base.resolve()
    (site,) = path.glob("lib/python3*/site-packages")
    (below,) = base.glob("lib/python3*/site-packages")
    # addsitedir, not a plain line: .pth files inside the base must work too.
    (site / "_base.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n")
    shebang, own = str(base / "bin" / "python"), str(path / "bin" / "python")
    for script in (base / "bin").iterdir():
        target = path / "bin" / script.name
        if script.is_symlink() or target.exists() or script.suffix in {".fish", ".csh", ".ps1"}:
            continue
        text = script.read_bytes()
        if text.startswith(b"#!") and shebang.encode() in text[:1024]:
            target.write_bytes(text.replace(shebang.encode(), own.encode(), 1))
            target.chmod(0o755)


def _require_ensurepip() -> None:
    """Install Debian's package of ``venv`` where possible, or say what to do."""
    if importlib.util.find_spec("ensurepip") is not None:
        return
    package = f"python3.{sys.version_info.minor}-venv"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _run(["apt-get", "install", "--yes", "--quiet", package], timeout=600)
        return
    raise EnvironmentFailedError(f"this Python cannot make virtual environments: install {package} first")


def _run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600,
) -> str:
    """Run a command to its end and return its output; raise with the tail of it when it fails."""
    clean = {key: value for key, value in os.environ.items() if key not in FOREIGN_VARIABLES}
    done = subprocess.run(
        [str(part) for part in command],
        env={**clean, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        words = " ".join(str(part) for part in command)
        raise EnvironmentFailedError(f"{words}\nended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Make what the command line asks for and print where it is."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.support.environments")
    parser.add_argument("what", choices=["tools", "wheel", "docs", "dev", "airflow", "installed"])
    parser.add_argument("version", nargs="?", default=LATEST_AIRFLOW, choices=AIRFLOW_VERSIONS)
    args = parser.parse_args(argv)
    try:
        if args.what == "tools":
            made = tools().parents[1]
        elif args.what == "wheel":
            made = wheel()
        elif args.what == "docs":
            made = docs()
        else:
            made = {"dev": dev, "airflow": airflow, "installed": installed}[args.what](args.version).path
    except EnvironmentFailedError as error:
        print(error, file=sys.stderr)
        return 1
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
