"""Ancestries of real task processes, recorded inside ``on_task_instance_running``.

Each is what ``/proc`` showed (pid, start in clock ticks, command line), from the task process up to the worker's main
process; the processes above that (a shell, an init process) are given by :data:`OUTSIDE`. Only host, user and path
names were changed, and the zero bytes removed that fill up a title.
"""

from __future__ import annotations

from textwrap import dedent
from typing import NamedTuple

from airflow_worker_insight.identity.process import Process

BIN = "/opt/airflow/bin"
TASK_ID = "01a20258-1af5-74de-83c2-04ec702af5df"


def process(pid: int, ticks: int, *argv: str) -> Process:
    return Process(pid=pid, argv=argv, start=str(ticks), started=1_700_000_000 + ticks / 100)


OUTSIDE = [
    process(7940, 9500, "bash"),
    process(1, 24, "/sbin/init", "splash"),
]

# Airflow 3.3.2, Celery provider 3.24.1, two workers with two pool processes each on one host.
CELERY_332_W1 = [
    process(11988, 159912, f"airflow worker -- {TASK_ID}"),
    process(11788, 159503, f"airflow supervisor: {TASK_ID}"),
    process(
        11708,
        157542,
        "[celeryd: w1@host-1:MainProcess] -active- (celery worker --skip-serve-logs --celery-hostname w1@%h)",
    ),
]
CELERY_332_W2 = [
    process(12027, 159932, "airflow worker -- 01a20258-1af6-789a-86b9-d0cb31c0c36b"),
    process(11796, 159516, "airflow supervisor: 01a20258-1af6-789a-86b9-d0cb31c0c36b"),
    process(
        11709,
        157544,
        "[celeryd: w2@host-1:MainProcess] -active- (celery worker --skip-serve-logs --celery-hostname w2@%h)",
    ),
]
# The same w1, a task with run_as_user: a new interpreter that inherited no memory.
CELERY_332_W1_AS_USER = [
    process(12340, 161748, "airflow worker -- 01a20258-1afa-7631-a6a5-77f1c216440e"),
    process(
        12339,
        161731,
        *("sudo", "-E", "-H", "-u", "etl", f"{BIN}/python", "-c"),
        "from airflow.sdk.execution_time.task_runner import main; main()",
    ),
    process(11788, 159503, "airflow supervisor: 01a20258-1afa-7631-a6a5-77f1c216440e"),
    CELERY_332_W1[-1],
]
# Airflow 3.0.6, Celery provider 3.12.2: before 3.3 the pool's child keeps its own title.
CELERY_306 = [
    process(17645, 230767, "airflow worker -- 01a20262-e7c0-7bef-922b-71478a73077d"),
    process(17622, 230415, "[celeryd: w1@host-1:ForkPoolWorker-1]"),
    process(
        17443,
        228038,
        "[celeryd: w1@host-1:MainProcess] -active- (celery worker --skip-serve-logs --celery-hostname w1@%h)",
    ),
]
CELERY_306_AS_USER = [
    process(17722, 232298, "airflow worker -- 01a20262-e7c3-7bf0-85c7-3e14ffea74d3"),
    process(
        17721,
        232289,
        *("sudo", "-E", "-H", "-u", "etl", f"{BIN}/python", "-c"),
        "from airflow.sdk.execution_time.task_runner import main; main()",
    ),
    *CELERY_306[1:],
]
# Airflow 3.1.8 with the solo pool: the main process runs the supervisor itself.
CELERY_318_SOLO = [
    process(24642, 283954, "airflow worker -- 01a2026b-0b9f-7f3d-9fc8-31518ae42bf1"),
    process(
        24408,
        282037,
        "[celeryd: solo@host-1:MainProcess] -active- (celery worker --skip-serve-logs --celery-hostname solo@%h)",
    ),
]
# Airflow 2.11.2, Celery provider 3.17.1: a supervisor below the pool's child.
CELERY_211 = [
    process(19107, 251356, "airflow task runner: p t2 scheduled__2024-01-01T00:00:00+00:00 3"),
    process(19087, 251260, "airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 't2', '--local']"),
    process(19064, 251032, "[celeryd: w1@host-1:ForkPoolWorker-1]"),
    process(
        18951,
        249025,
        "[celeryd: w1@host-1:MainProcess] -active- (celery worker --skip-serve-logs --celery-hostname w1@%h)",
    ),
]
CELERY_211_AS_USER = [
    process(
        5210,
        372065,
        *(f"{BIN}/python", f"{BIN}/airflow", "tasks", "run", "p", "ras", "scheduled__2024-01-01T00:00:00+00:00"),
        *("--job-id", "3", "--raw", "--subdir", "DAGS_FOLDER/p.py", "--cfg-path", "/tmp/tmp3vvya77m"),
    ),
    process(5207, 372061, "sudo", "-E", "-H", "-u", "etl", "airflow", "tasks", "run", "p", "ras"),
    process(5195, 371969, "airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'ras', '--local']"),
    process(5095, 371565, "[celeryd: w1@host-1:ForkPoolWorker-1]"),
    process(
        4699,
        369405,
        "[celeryd: w1@host-1:MainProcess] -active- (celery worker --skip-serve-logs --celery-hostname w1@%h)",
    ),
]
# Airflow 3.3.2 with the solo pool: the supervisor is forked by the main process and gives it its own title.
CELERY_332_SOLO = [
    process(16047, 221296, "airflow worker -- 01a20261-7f1f-7082-b221-f0e5cc67ab34"),
    process(15912, 219396, "airflow supervisor: 01a20261-7f1f-7082-b221-f0e5cc67ab34"),
]
CELERY_332_SOLO_AS_USER = [
    process(17100, 223918, "airflow worker -- 01a20261-7f23-7d27-b5bb-c19d1138774c"),
    process(
        17099,
        223909,
        *("sudo", "-E", "-H", "-u", "etl", f"{BIN}/python", "-c"),
        "from airflow.sdk.execution_time.task_runner import main; main()",
    ),
    process(15912, 219396, "airflow supervisor: 01a20261-7f23-7d27-b5bb-c19d1138774c"),
]

# Airflow 3.3.2 and 3.0.6, LocalExecutor: two of its worker processes.
LOCAL_332_A = [
    process(10575, 132157, "airflow worker -- 01a20253-e6c9-7ab8-8d0c-99f2c33b7c90"),
    process(10563, 131697, "airflow worker -- LocalExecutor: 01a20253-e6c9-7ab8-8d0c-99f2c33b7c90"),
    process(10506, 130678, f"{BIN}/python", f"{BIN}/airflow", "scheduler"),
]
LOCAL_332_B = [
    process(10577, 132176, "airflow worker -- 01a20253-e6c7-7471-884d-f1466e5d8085"),
    process(10561, 131689, "airflow worker -- LocalExecutor: 01a20253-e6c7-7471-884d-f1466e5d8085"),
    LOCAL_332_A[-1],
]
# The same below "airflow standalone".
LOCAL_332_STANDALONE = [
    process(18145, 236982, "airflow worker -- 01a20263-e6f3-70da-95d0-c77e617c1fa9"),
    process(18055, 236416, "airflow worker -- LocalExecutor: 01a20263-e6f3-70da-95d0-c77e617c1fa9"),
    process(17952, 234899, f"{BIN}/python", f"{BIN}/airflow", "scheduler"),
    process(17895, 234099, f"{BIN}/python", f"{BIN}/airflow", "standalone"),
]
# The same with [core] mp_start_method = forkserver, which is Python 3.14's default.
LOCAL_332_FORKSERVER = [
    process(27202, 303511, "airflow worker -- 01a2026d-8249-772f-a016-85be2153abfc"),
    process(26739, 299939, "airflow worker -- LocalExecutor: 01a2026d-8249-772f-a016-85be2153abfc"),
    process(
        26550,
        298975,
        *(f"{BIN}/python", "-c"),
        "from multiprocessing.forkserver import main; main(6, 8, ['__main__'], **{'sys_path': ['/opt/airflow/bin']})",
    ),
    process(26239, 296951, f"{BIN}/python", f"{BIN}/airflow", "scheduler"),
]
LOCAL_306 = [
    process(11522, 155878, "airflow worker -- 01a20257-856c-7383-baad-70d57558c057"),
    process(11515, 155804, "airflow worker -- LocalExecutor: 01a20257-856c-7383-baad-70d57558c057"),
    process(11492, 154711, f"{BIN}/python", f"{BIN}/airflow", "scheduler"),
]
# Airflow 2.11.2: one process more, and a scheduler that set its title back to what it was, as one string.
_RUN_211 = "['airflow', 'tasks', 'run', 'p', 't1', 'scheduled__2024-01-01T00:00:00+00:00', '--local']"
LOCAL_211 = [
    process(14594, 204945, "airflow task runner: p t1 scheduled__2024-01-01T00:00:00+00:00 3"),
    process(14548, 204781, f"airflow task supervisor: {_RUN_211}"),
    process(14520, 204648, f"airflow worker -- LocalExecutor: {_RUN_211}"),
    process(14455, 204112, f"{BIN}/python {BIN}/airflow scheduler"),
]
SEQUENTIAL_211 = [
    process(11330, 153722, "airflow task runner: p t0 scheduled__2024-01-01T00:00:00+00:00 2"),
    process(
        11327,
        153381,
        *(f"{BIN}/python", f"{BIN}/airflow", "tasks", "run", "p", "t0"),
        *("scheduled__2024-01-01T00:00:00+00:00", "--local", "--subdir", "DAGS_FOLDER/p.py"),
    ),
    process(11319, 152966, f"{BIN}/python {BIN}/airflow scheduler"),
]

# Edge provider 4.3.2 on Airflow 3.3.2 sets its name as title; 1.1.3 on 3.0.6 sets only its child's.
EDGE_332 = [
    process(15022, 210627, "airflow worker -- 01a2025f-cb36-7a79-878b-598491d7b2f8"),
    process(15016, 210609, "airflow supervisor: 01a2025f-cb36-7a79-878b-598491d7b2f8"),
    process(14943, 208656, "airflow edge worker: e1"),
]
EDGE_306 = [
    process(15788, 216796, "airflow worker -- 01a20260-bfee-78ef-a933-d9f629bd64b1"),
    process(
        15780,
        216740,
        "airflow edge worker: TaskInstanceKey(dag_id='p', task_id='t0', "
        "run_id='scheduled__2024-01-01T00:00:00+00:00', try_number=1, map_index=-1)",
    ),
    process(
        15648,
        215842,
        *(f"{BIN}/python", f"{BIN}/airflow", "edge", "worker", "--edge-hostname", "e1", "--concurrency", "2"),
    ),
]
EDGE_ENVIRON = {
    "HOSTNAME": "e1",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "airflow.providers.edge3.cli.worker._edge_hostname",
}

# An executor of one's own that starts a new interpreter per task from the scheduler (Airflow 3.3.2).
UNKNOWN_332 = [
    process(23648, 278729, "airflow worker -- 01a20269-f3b2-7a61-83f4-158612a6d440"),
    process(23344, 276595, "airflow supervisor: 01a20269-f3b2-7a61-83f4-158612a6d440"),
    process(23150, 274996, f"{BIN}/python", f"{BIN}/airflow", "scheduler"),
]
# What KubernetesExecutor starts in a pod, in a pid namespace of its own: from 3.3 on it has a title.
POD_332 = [
    process(3, 268107, "airflow worker -- 01a20268-6572-767d-928f-51bf6c24532d"),
    process(1, 266413, "airflow supervisor: 01a20268-6572-767d-928f-51bf6c24532d"),
]
POD_318 = [
    process(3, 272217, "airflow worker -- 01a20269-3200-7136-b807-ce602a99da81"),
    process(
        1,
        271631,
        *(f"{BIN}/python", "-m", "airflow.sdk.execution_time.execute_workload"),
        *("--json-path", "/tmp/execute/input.json"),
    ),
]


# --- all processes of a worker ---------------------------------------------------------------------------------------


class Running(NamedTuple):
    """A process as ``/proc`` shows it, and which thread of which process has started it."""

    pid: int
    argv: tuple[str, ...]
    parent: int = 0
    thread: int = 0


def tree(text: str) -> list[Running]:
    """Read a tree: each line is a pid and a title (or a command, with ``|`` between its words).

    ``pid/thread`` is a process that another thread than the main one has started.
    """
    found: list[Running] = []
    above: dict[int, int] = {0: 0}
    for line in dedent(text).strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        number, _, title = line.strip().partition(" ")
        pid, _, thread = number.partition("/")
        parent = above[depth]
        found.append(Running(int(pid), tuple(title.split("|")), parent, int(thread or parent)))
        above[depth + 1] = int(pid)
    return found


# In each three tries run, one of which has started processes of its own; the worker could run five or eight.

# Airflow 3.3.2, Celery. One of the idle processes has run a try before.
CELERY_332_TREE = tree("""
25916 [celeryd: w1@host-1:MainProcess] -active- (celery worker --celery-hostname w1@host-1)
  25933 airflow serve-logs
  25934 /opt/airflow/bin/python|/opt/airflow/bin/airflow|celery|worker|--celery-hostname|w1@host-1
  25940 airflow supervisor: 01a20329-1001-7681-9fa8-7d8026492200
  25942 airflow supervisor: 01a20329-1443-7681-9fa8-7d8026492200
    26025 airflow worker -- 01a20329-1443-7681-9fa8-7d8026492200
  25943 airflow supervisor: 01a20329-1444-7756-be6c-f8c586e31bd1
    26023 airflow worker -- 01a20329-1444-7756-be6c-f8c586e31bd1
      26081 sh|-c|sleep 600 & sleep 600
        26082 sleep|600
        26083 sleep|600
  25944 airflow supervisor: 01a20329-1445-7d18-8c9a-5e339a13d7b0
    26026 airflow worker -- 01a20329-1445-7d18-8c9a-5e339a13d7b0
  25945 [celeryd: w1@host-1:ForkPoolWorker-5]
""")
# Airflow 3.0.6: before 3.3 the pool's processes keep their titles, and the log server has workers of its own.
CELERY_306_TREE = tree("""
30159 [celeryd: w1@host-1:MainProcess] -active- (celery worker --celery-hostname w1@host-1)
  30369 gunicorn: master [gunicorn]
    30371 gunicorn: worker [gunicorn]
    30372 gunicorn: worker [gunicorn]
  30370 /opt/airflow/bin/python|/opt/airflow/bin/airflow|celery|worker|--celery-hostname|w1@host-1
  30378 [celeryd: w1@host-1:ForkPoolWorker-1]
  30379 [celeryd: w1@host-1:ForkPoolWorker-2]
    30444 airflow worker -- 01a2032f-1c19-71e9-be2c-07d2bef4ea15
  30380 [celeryd: w1@host-1:ForkPoolWorker-3]
    30445 airflow worker -- 01a2032f-1c1a-7db3-a3e9-1f4643d386ac
      30518 sh|-c|sleep 600 & sleep 600
        30519 sleep|600
        30520 sleep|600
  30423 [celeryd: w1@host-1:ForkPoolWorker-4]
  30427 [celeryd: w1@host-1:ForkPoolWorker-5]
    30443 airflow worker -- 01a2032f-1c1b-711c-9b43-84e610ca051c
""")
# Airflow 3.1.8 and 3.0.6 with a pool of threads: each starts its task processes itself, and is their supervisor.
CELERY_318_THREADS_TREE = tree("""
2343 [celeryd: w1@host-1:MainProcess] -active- (celery worker --celery-hostname w1@host-1)
  2636 airflow serve-logs
  2637 /opt/airflow/bin/python|/opt/airflow/bin/airflow|celery|worker|--celery-hostname|w1@host-1
  2758/2745 airflow worker -- 01a20333-27cd-799d-88ba-7e330c441b2a
  2759/2750 airflow worker -- 01a20333-27ce-7832-acf9-f8fc73bfd92c
    2811 sh|-c|sleep 600 & sleep 600
      2812 sleep|600
      2813 sleep|600
  2762/2754 airflow worker -- 01a20333-27cf-79a1-b22e-9a71c596cf43
""")
CELERY_306_THREADS_TREE = tree("""
1267 [celeryd: w1@host-1:MainProcess] -active- (celery worker --celery-hostname w1@host-1)
  1460 gunicorn: master [gunicorn]
    1463 gunicorn: worker [gunicorn]
    1464 gunicorn: worker [gunicorn]
  1461 /opt/airflow/bin/python|/opt/airflow/bin/airflow|celery|worker|--celery-hostname|w1@host-1
  1513/1494 airflow worker -- 01a20332-2ace-7a51-842b-0e62eb74fed8
  1512/1496 airflow worker -- 01a20332-2acf-7761-8ac3-c65cc3974eba
    1617 sh|-c|sleep 600 & sleep 600
      1618 sleep|600
      1619 sleep|600
  1511/1497 airflow worker -- 01a20332-2ad0-78d9-94bb-d6f9e3112c39
""")
# Airflow 2.11.2: one process more between the pool and the task.
CELERY_211_TREE = tree("""
28515 [celeryd: w1@host-1:MainProcess] -active- (celery worker --celery-hostname w1@host-1)
  28612 gunicorn: master [gunicorn]
    28614 gunicorn: worker [gunicorn]
    28615 gunicorn: worker [gunicorn]
  28618 [celeryd: w1@host-1:ForkPoolWorker-1]
  28619 [celeryd: w1@host-1:ForkPoolWorker-2]
  28620 [celeryd: w1@host-1:ForkPoolWorker-3]
    28681 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-b5532fab', '--local', '--subdir']
      28720 airflow task runner: p hold test-b5532fab 4
  28621 [celeryd: w1@host-1:ForkPoolWorker-4]
    28684 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-b5532fab', '--local', '--subdir']
      28711 airflow task runner: p hold test-b5532fab 2
        28727 sh|-c|sleep 600 & sleep 600
          28728 sleep|600
          28729 sleep|600
  28622 [celeryd: w1@host-1:ForkPoolWorker-5]
    28679 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-b5532fab', '--local', '--subdir']
      28718 airflow task runner: p hold test-b5532fab 3
""")
CELERY_211_THREADS_TREE = tree("""
29363 [celeryd: w1@host-1:MainProcess] -active- (celery worker --celery-hostname w1@host-1)
  29395 gunicorn: master [gunicorn]
    29397 gunicorn: worker [gunicorn]
    29398 gunicorn: worker [gunicorn]
  29466/29429 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-f0c10836', '--local', '--subdir']
    29632 airflow task runner: p hold test-f0c10836 2
  29487/29444 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-f0c10836', '--local', '--subdir']
    29641 airflow task runner: p hold test-f0c10836 4
      29712 sh|-c|sleep 600 & sleep 600
        29713 sleep|600
        29714 sleep|600
  29506/29452 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-f0c10836', '--local', '--subdir']
    29633 airflow task runner: p hold test-f0c10836 3
""")

# LocalExecutor: the worker is the scheduler, with all that this starts besides.
LOCAL_332_TREE = tree("""
26268 /opt/airflow/bin/python|/opt/airflow/bin/airflow|scheduler
  26278 airflow serve-logs
  26283 airflow worker -- LocalExecutor: 01a20329-c971-7d42-ae81-ea6fb6ebb8e7
    26363 airflow worker -- 01a20329-c971-7d42-ae81-ea6fb6ebb8e7
  26284 airflow worker -- LocalExecutor: 01a20329-c972-7399-9f29-5ff242aff198
    26361 airflow worker -- 01a20329-c972-7399-9f29-5ff242aff198
      26408 sh|-c|sleep 600 & sleep 600
        26409 sleep|600
        26410 sleep|600
  26285 airflow worker -- LocalExecutor: 01a20329-c973-77b9-ae95-ca3eeabb8bbb
    26362 airflow worker -- 01a20329-c973-77b9-ae95-ca3eeabb8bbb
  26286 airflow worker -- LocalExecutor: <idle>
  26287 airflow worker -- LocalExecutor: <idle>
""")
LOCAL_332_FORKSERVER_TREE = tree("""
3119 /opt/airflow/bin/python|/opt/airflow/bin/airflow|scheduler
  3143 /opt/airflow/bin/python|-c|from multiprocessing.resource_tracker import main;main(4)
  3144 /opt/airflow/bin/python|-c|from multiprocessing.forkserver import main; main(4, 6, ['__main__'])
    3146 airflow serve-logs
    3448 airflow worker -- LocalExecutor: 01a20334-4372-7c7e-b6f2-5032cb921c5d
      3617 airflow worker -- 01a20334-4372-7c7e-b6f2-5032cb921c5d
    3449 airflow worker -- LocalExecutor: 01a20334-4374-7b0e-8a09-3f5b52b3c253
      3640 airflow worker -- 01a20334-4374-7b0e-8a09-3f5b52b3c253
    3458 airflow worker -- LocalExecutor: <idle>
    3460 airflow worker -- LocalExecutor: 01a20334-4373-7b99-9fc6-56e767a026c5
      3620 airflow worker -- 01a20334-4373-7b99-9fc6-56e767a026c5
        3887 sh|-c|sleep 600 & sleep 600
""")
LOCAL_306_TREE = tree("""
30642 /opt/airflow/bin/python|/opt/airflow/bin/airflow|scheduler
  30774 gunicorn: master [gunicorn]
    30777 gunicorn: worker [gunicorn]
    30779 gunicorn: worker [gunicorn]
  30791 airflow worker -- LocalExecutor: 01a2032f-6be8-744b-b404-0f720d9881d4
    30795 airflow worker -- 01a2032f-6be8-744b-b404-0f720d9881d4
  30792 airflow worker -- LocalExecutor: 01a2032f-6be9-7961-8ada-f2b282a58be4
    30796 airflow worker -- 01a2032f-6be9-7961-8ada-f2b282a58be4
      30802 sh|-c|sleep 600 & sleep 600
  30793 airflow worker -- LocalExecutor: 01a2032f-6bea-7b56-acf2-be54e6b50090
    30797 airflow worker -- 01a2032f-6bea-7b56-acf2-be54e6b50090
  30794 airflow worker -- LocalExecutor: <idle>
""")
# A Dag file is just being parsed.
LOCAL_211_TREE = tree("""
28886 /opt/airflow/bin/python /opt/airflow/bin/airflow scheduler
  28956 gunicorn: master [gunicorn]
    28958 gunicorn: worker [gunicorn]
    28974 gunicorn: worker [gunicorn]
  28959 airflow executor -- LocalExecutor
  28967 airflow worker -- LocalExecutor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-5fd593cc', '--local']
    29045 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-5fd593cc', '--local', '--subdir']
      29066 airflow task runner: p hold test-5fd593cc 2
        29087 sh|-c|sleep 600 & sleep 600
  28968 airflow worker -- LocalExecutor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-5fd593cc', '--local']
    29046 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-5fd593cc', '--local', '--subdir']
      29077 airflow task runner: p hold test-5fd593cc 4
  28972 airflow worker -- LocalExecutor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-5fd593cc', '--local']
    29047 airflow task supervisor: ['airflow', 'tasks', 'run', 'p', 'hold', 'test-5fd593cc', '--local', '--subdir']
      29073 airflow task runner: p hold test-5fd593cc 3
  28977 airflow worker -- LocalExecutor
  28984 airflow worker -- LocalExecutor
  29000 airflow scheduler -- DagFileProcessorManager
    29099 airflow scheduler - DagFileProcessor /opt/airflow/dags/p.py
""")

EDGE_332_TREE = tree("""
26933 airflow edge worker: e1
  27145 airflow supervisor: 01a2032a-cbff-77a9-a5f8-47a6120c957f
    27179 airflow worker -- 01a2032a-cbff-77a9-a5f8-47a6120c957f
  27175 airflow supervisor: 01a2032a-cc00-7770-8528-62f5b124bacb
    27184 airflow worker -- 01a2032a-cc00-7770-8528-62f5b124bacb
      27225 sh|-c|sleep 600 & sleep 600
  27180 airflow supervisor: 01a2032a-cc01-727e-b45f-3e73d10dafb9
    27185 airflow worker -- 01a2032a-cc01-727e-b45f-3e73d10dafb9
""")
EDGE_306_TREE = tree("""
31291 /opt/airflow/bin/python|/opt/airflow/bin/airflow|edge|worker|--edge-hostname|e1
  31367 airflow edge worker: TaskInstanceKey(dag_id='p', task_id='hold', run_id='test', try_number=1, map_index=0)
    31383 airflow worker -- 01a2032f-e196-705d-81d2-1b8c17f2a9c9
  31372 airflow edge worker: TaskInstanceKey(dag_id='p', task_id='hold', run_id='test', try_number=1, map_index=1)
    31386 airflow worker -- 01a2032f-e197-718f-881b-36cb446f0397
      31430 sh|-c|sleep 600 & sleep 600
  31377 airflow edge worker: TaskInstanceKey(dag_id='p', task_id='hold', run_id='test', try_number=1, map_index=2)
    31387 airflow worker -- 01a2032f-e198-7c45-a611-88d4910fe34f
""")
