"""Ancestries of real task processes, recorded inside ``on_task_instance_running``.

Each is what ``/proc`` showed (pid, start in clock ticks, command line), from the task process up to the worker's main
process; the processes above that (a shell, an init process) are given by :data:`OUTSIDE`. Only host, user and path
names were changed, and the zero bytes removed that fill up a title.
"""

from __future__ import annotations

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
