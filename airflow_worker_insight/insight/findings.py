"""Findings: what was found of a worker, a group or a task, with the numbers that say so."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.insight.lanes import NAME, TASK, WORKER
from airflow_worker_insight.insight.recovery import Recovery

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_worker_insight.insight.units import Note

OPEN, RECOVERING, CLOSED = "open", "recovering", "closed"

SCOPE_SHARE = 0.8
"""Share of the excess that lies in one Dag, or one task, for a finding to be about that only."""

SCOPE_TRIES = 5
"""Tries elsewhere from which a finding may be about one Dag or task only."""

MOST_TASKS = 20
"""Tasks that a finding names, those with most excess."""


@dataclass(slots=True)
class Share:
    """A task's part of a finding; of a finding about a task, a worker's part.

    ``stratum`` is the Dag ID and task ID, or the name of the worker. Counts are those of open blocks, and of closed
    ones in which the subject failed.
    """

    stratum: tuple[str, ...]
    tries: int
    failures: int
    peer_tries: int
    peer_failures: int
    excess: float
    """Failures beyond those expected by the peers' rate."""


@dataclass(slots=True)
class Finding:
    """A subject that fails, loses or slows more of its tries than its peers on the same tasks.

    Times are Unix times in seconds. Counts are those of the window that shows most: it is cut at whole days and ended
    when the finding was refreshed last.
    """

    number: int
    """Identifies it; counts up."""
    dimension: str
    """``worker``, ``name``, ``task``, or the key of a group."""
    unit: str
    """Value in the dimension: a worker ID, a name, a group's value, ``dag_id/task_id``."""
    subject: str
    """What an operator calls it: the worker's name, ``dag_id.task_id``, else as ``unit``."""
    outcome: str
    """``failed``, ``lost`` or ``slow``."""
    state: str
    since: float
    """Start of the first failure in the window."""
    found_at: float
    evidence: float
    needed: float
    tries: int
    failures: int
    expected: float
    peer_tries: int
    peer_failures: int
    shares: list[Share]
    worker_ids: list[str]
    scope: tuple[str, ...] = ()
    """Empty: all tasks. One Dag ID, or Dag ID and task ID: only there."""
    left_out: str | None = None
    """For a group: its worst member. It is found without that one too."""
    ended_at: float | None = None
    end_reason: str | None = None
    """``well``, ``gone`` (not seen for 30 days), ``part_of`` (a group that contains it is found), or the caller's."""
    probation: str = ""
    """What began the probation: ``restart`` or ``quarantine``; empty: the worker is on none."""
    was_quarantined: bool = False
    """Whether a quarantine has begun its probation: only the first one does."""
    first_instance: int = 0
    """Number of the instance that the last restart began: tries of earlier ones do not tell if the worker is well."""
    recovery: Recovery | None = None

    @property
    def subject_kind(self) -> str:
        """``worker``, ``host``, ``label`` or ``task``, as the REST API says it."""
        if self.dimension in {WORKER, NAME}:
            return "worker"
        return self.dimension if self.dimension in {"host", TASK} else "label"

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state != CLOSED


def shares_of(notes: Iterable[Note], names: Mapping[int, tuple[str, ...]]) -> list[Share]:
    """Add up a unit's blocks by stratum, the largest excess first.

    :param names: names of strata by index; those that are forgotten are left out
    """
    by_stratum: dict[tuple[str, ...], list[Note]] = defaultdict(list)
    for note in notes:
        if note.stratum in names:
            by_stratum[names[note.stratum]].append(note)
    found = [
        Share(
            stratum,
            sum(note.own_tries for note in of_stratum),
            sum(note.own_failures for note in of_stratum),
            sum(note.tries - note.own_tries for note in of_stratum),
            sum(note.failures - note.own_failures for note in of_stratum),
            sum(note.excess for note in of_stratum),
        )
        for stratum, of_stratum in by_stratum.items()
    ]
    return sorted(found, key=lambda share: (-share.excess, share.stratum))


def scope_of(shares: Iterable[Share]) -> tuple[str, ...]:
    """Return the task, else the Dag, that has 80 % of the excess; empty if none has or it ran little else."""
    shares = list(shares)
    total = sum(max(share.excess, 0.0) for share in shares)
    tries = sum(share.tries for share in shares)
    # A task of a Dag that is not concerned as a whole is said as such.
    for length in (1, 2):
        excess: dict[tuple[str, ...], float] = defaultdict(float)
        within: dict[tuple[str, ...], int] = defaultdict(int)
        for share in shares:
            excess[share.stratum[:length]] += max(share.excess, 0.0)
            within[share.stratum[:length]] += share.tries
        best = max(excess, key=lambda scope: (excess[scope], scope), default=())
        if not best or excess[best] < SCOPE_SHARE * total or total <= 0:
            return ()
        if tries - within[best] >= SCOPE_TRIES:
            return _narrowed(best, shares, total) if length == 1 else best
    return ()


def _narrowed(dag: tuple[str, ...], shares: Iterable[Share], total: float) -> tuple[str, ...]:
    """Return the one task of a Dag that has 80 % of the excess, else the Dag."""
    excess = {share.stratum: share.excess for share in shares if share.stratum[:1] == dag}
    best = max(excess, key=lambda task: (excess[task], task))
    tries_elsewhere = sum(s.tries for s in shares if s.stratum[:1] == dag and s.stratum != best)
    return best if excess[best] >= SCOPE_SHARE * total and tries_elsewhere >= SCOPE_TRIES else dag


def rates_in_scope(finding: Finding) -> tuple[float, float]:
    """Return the peers' rate of failures and the excess over it, each 0 to 1, in the tasks that a finding is about."""
    tries, failures, expected = float(finding.tries), float(finding.failures), finding.expected
    if finding.scope:
        inside = [s for s in finding.shares if s.stratum[: len(finding.scope)] == finding.scope]
        tries = float(sum(share.tries for share in inside))
        failures = float(sum(share.failures for share in inside))
        expected = failures - sum(share.excess for share in inside)
    return expected / tries, (failures - expected) / tries


def as_json(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON stores it."""
    return asdict(finding)


def from_json(stored: Mapping[str, Any]) -> Finding:
    """Return a finding from :func:`as_json`."""
    shares = [Share(**{**share, "stratum": tuple(share["stratum"])}) for share in stored["shares"]]
    recovery = Recovery(**stored["recovery"]) if stored["recovery"] else None
    return Finding(**{**stored, "shares": shares, "recovery": recovery, "scope": tuple(stored["scope"])})
