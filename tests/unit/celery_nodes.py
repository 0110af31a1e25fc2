"""Mailboxes of Celery workers on a real broker, for tests of remote control."""

from __future__ import annotations

import contextlib
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Node:
    """The mailbox of one worker, which notes the commands that it gets."""

    def __init__(self, app: Any, name: str, *queues: str, obeys: bool = True, fetched: int = 0) -> None:
        self.app = app
        self.name = name
        self.queues = set(queues)
        self.obeys = obeys
        self.fetched = fetched
        self.commands: list[str] = []
        self.declared: list[Any] = []
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        assert self._ready.wait(120)

    def _work(self) -> None:
        connection = self.app.connection_for_read()
        handlers = {
            "active_queues": lambda _state: [{"name": queue} for queue in sorted(self.queues)],
            "add_consumer": lambda _state, queue, **options: self._obey("add", queue, **options),
            "cancel_consumer": lambda _state, queue: self._obey("cancel", queue),
            "reserved": lambda _state: [{"id": str(number)} for number in range(self.fetched)],
        }
        node = self.app.control.mailbox(connection).Node(
            self.name, state=None, channel=connection.channel(), handlers=handlers
        )
        node.listen()
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)
        self._ready.set()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
        connection.release()

    def _obey(self, what: str, queue: str, **options: Any) -> Any:
        self.commands.append(f"{what} {queue}")
        # As a worker of Celery does (Consumer.add_task_queue).
        options = {"exchange": queue, "exchange_type": "direct", **options}
        self.declared.append(self.app.amqp.Queues({}).add(queue, **options))
        if not self.obeys:
            return {"error": "no"}
        (self.queues.add if what == "add" else self.queues.discard)(queue)
        return {"ok": f"{what} consumer {queue}"}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


@contextmanager
def started_nodes(app: Any) -> Iterator[Callable[..., Node]]:
    """Yield a function that starts a node; stop all of them at the end."""
    started: list[Node] = []

    def start(name: str, *queues: str, **others: Any) -> Node:
        started.append(Node(app, name, *queues, **others))
        return started[-1]

    try:
        yield start
    finally:
        for node in started:
            node.stop()
