"""Dag files that several test modules use."""

from __future__ import annotations

from tests.support.fleet import WITNESS, Try

TWO_HUNDRED_TRIES = (
    WITNESS
    + """
from airflow.sdk import dag, task


@dag(schedule=None, max_active_tasks=64)
def two_hundred():
    @task
    def steady(number=0, **context):
        witness(context)

    @task(retries=1, retry_delay=0)
    def flaky(number=0, **context):
        witness(context)
        if context["ti"].try_number == 1:
            raise RuntimeError("on purpose")

    for number in range(8):
        steady.override(task_id=f"steady_{number}")()
    for number in range(6):
        flaky.override(task_id=f"flaky_{number}")()
    steady.override(task_id="steady_mapped").expand(number=list(range(60)))
    flaky.override(task_id="flaky_mapped").expand(number=list(range(60)))


two_hundred()
"""
)
"""200 tries: 68 tasks have one, and 66 have a failed one and then, without delay, another one."""

_STEADY = [(f"steady_{number}", -1) for number in range(8)] + [("steady_mapped", index) for index in range(60)]
_FLAKY = [(f"flaky_{number}", -1) for number in range(6)] + [("flaky_mapped", index) for index in range(60)]

STATES_OF_THE_200 = {
    **{Try(*task, 1): "success" for task in _STEADY},
    **{Try(*task, 1): "failed" for task in _FLAKY},
    **{Try(*task, 2): "success" for task in _FLAKY},
}

TRAP = """
class Trap:
    '''Kills the process that renders it, before Airflow calls listeners and the task.'''

    template_fields = ("bait",)

    @property
    def bait(self):
        die()
"""
"""Needs the functions of WITNESS."""
