"""An interrupted test session ends within seconds and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support import guardian
from tests.support.environments import ROOT
from tests.support.guardian import DEBOUNCE
from tests.support.processes import WaitTimeoutError, end, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SESSION = '''
import subprocess, sys, time
import pytest
from tests.conftest import pytest_configure
from tests.support.services import _Service

class Server(_Service):
    """Ignores signals, and has a child in another session, as task processes are."""
    name = "stubborn"

    def _launch(self, log):
        child = "import time; open('up', 'w').close(); time.sleep(600)"
        code = (
            "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True); time.sleep(600)"
        )
        return subprocess.Popen([sys.executable, "-c", code, child], cwd=self.folder, start_new_session=True)

    def _ping(self):
        return (self.folder / "up").exists()

    def _stop_signal(self):
        return 9

@pytest.fixture(scope="session")
def server():
    with Server() as running:
        yield running

@pytest.fixture
def hangs_at_the_end(number, request):
    yield
    (request.config.rootpath / f"ends-{number}").touch()
    while ENDLESS:
        time.sleep(1)

@pytest.mark.parametrize("number", range(2))
def test_hangs(server, hangs_at_the_end, number, request):
    (request.config.rootpath / f"folder-{number}").write_text(str(server.folder))
    while True:
        try:
            time.sleep(600)
        except Exception:
            pass
'''


class Session:
    """pytest under make with two workers, as ``make test`` runs it, in its own group."""

    def __init__(self, folder: Path, *, endless: bool = False, through: tuple[str, ...] = ()) -> None:
        self.folder = folder
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "conftest.py").write_text("")
        (folder / "test_session.py").write_text(f"ENDLESS = {endless}\n{SESSION}")
        (folder / "conftest.py").write_text("from tests.conftest import pytest_configure\n")
        (folder / "Makefile").write_text(
            f"test:\n\t@exec {sys.executable} -m pytest -q -n 2 -p xdist -p no:cacheprovider\n"
        )
        self.output = folder / "output"
        guardian.guard(folder)
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*through, "make", "--no-print-directory", "test"],
                cwd=folder,
                # The plugins of the environment take many times as long to load as the session lasts.
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTEST_ADDOPTS": "",
                    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_for(lambda: all((folder / f"folder-{n}").exists() for n in range(2)), 60, "both tests to hang")
        except BaseException:
            print(self.output.read_text())
            self.kill()
            raise
        self.servers = [Path((folder / f"folder-{n}").read_text()) for n in range(2)]

    def processes(self) -> list[psutil.Process]:
        """Return its remaining processes, with those of its servers and its guardians."""
        names = tuple(map(str, (self.folder, *self.servers)))
        group = self.process.pid
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == group or process.cwd().startswith(names):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def kill(self) -> None:
        end(self.processes())

    def assert_gone(self) -> None:
        """Check that it ends within seconds and leaves no process and no folder."""
        # Its limits are its own: fixtures have ten seconds.
        wait_for(lambda: self.process.poll() is not None, 20, "the session to end")
        try:
            wait_for(lambda: not self.processes(), 10, "its processes to end")
        except WaitTimeoutError as late:
            raise WaitTimeoutError(
                f"{late}: {[process.as_dict(['cmdline', 'cwd']) for process in self.processes()]}"
            ) from None
        wait_for(lambda: not any(server.exists() for server in self.servers), 10, "its folders to be removed")
        assert self.process.returncode != 0


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    guardian.release(tmp_path)
    end(process for process in psutil.process_iter() if _below(process, tmp_path))


def _below(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd().startswith(str(folder))
    except (psutil.Error, OSError):
        return False


def test_ctrl_c_ends_the_session_in_order(tmp_path: Path) -> None:
    session = Session(tmp_path)
    os.killpg(session.process.pid, signal.SIGINT)
    session.assert_gone()
    assert "KeyboardInterrupt" in session.output.read_text()


def test_second_ctrl_c_ends_the_session_although_a_fixture_hangs(tmp_path: Path) -> None:
    session = Session(tmp_path, endless=True)
    os.killpg(session.process.pid, signal.SIGINT)
    first = time.monotonic()
    # Unless the machine is so slow that it has ended before.
    hang = [tmp_path / f"ends-{number}" for number in range(2)]
    wait_for(lambda: all(path.exists() for path in hang) or session.process.poll(), 10, "both fixtures to hang")
    wait_for(lambda: time.monotonic() > first + 2 * DEBOUNCE, 10, "it to be another signal")
    if session.process.poll() is None:
        os.killpg(session.process.pid, signal.SIGINT)
    session.assert_gone()


def test_hanging_fixture_does_not_hold_the_session(tmp_path: Path) -> None:
    session = Session(tmp_path, endless=True)
    os.killpg(session.process.pid, signal.SIGINT)
    session.assert_gone()


def test_sigterm_to_make_ends_the_session(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.process.send_signal(signal.SIGTERM)
    session.assert_gone()


@pytest.mark.parametrize("sig", ["INT", "TERM"])
def test_timeout_ends_the_session(tmp_path: Path, sig: str) -> None:
    session = Session(tmp_path, through=("timeout", f"--signal={sig}", "600"))
    # timeout passes a signal on as it does when the time is over.
    session.process.send_signal(getattr(signal, f"SIG{sig}"))
    session.assert_gone()


def test_killed_session_leaves_nothing(tmp_path: Path) -> None:
    session = Session(tmp_path)
    os.killpg(session.process.pid, signal.SIGKILL)
    session.assert_gone()
