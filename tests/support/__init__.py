'''
The test harness: real Airflow deployments, PostgreSQL, Redis and a real browser.

A test asks for fixtures (``tests/conftest.py``) and builds what it needs::

    def test_two_workers(airflow_env, postgres, redis, tmp_path):
        with Deployment(
            airflow_env("3.3.2"),                      # Airflow 3.3.2 with the wheel of this project
            executor="CeleryExecutor",
            postgres=postgres,
            redis=redis,                               # without these two: LocalExecutor on SQLite
            users={"limited": "viewer"},               # beside admin and viewer; the password is the name
            config={"worker_insight.labels": "zone=a"},
        ) as airflow:
            airflow.write_dag("hello", """
    from airflow.sdk import dag, task

    @dag(schedule=None)
    def hello():
        @task(retries=1, retry_delay=0)
        def greet(): ...
        greet()

    hello()
    """)
            airflow.migrate()                          # `airflow db migrate`, or a kept copy of its result
            airflow.start_all(triggerer=True, workers=2)   # ... or start() one by one
            run_id = airflow.trigger("hello")
            airflow.wait_run("hello", run_id, expect="success")
            # ... or, where the number of tries matters, again only if Airflow's logs prove that Airflow lost one:
            run_id = airflow.run_to_end("hello", tries=1)

            answer = airflow.api("GET", f"/worker-insight/api/v1/attempts?dag_id=hello&run_id={run_id}")
            assert answer.json()["total_entries"] == len(airflow.tries("hello", run_id))

            airflow.kill("w1", descendants=True)       # SIGKILL to a worker and all its processes
            airflow.start("celery worker", name="w1")  # its next instance
            airflow.wait_for(lambda: airflow.sql("SELECT 1 FROM job WHERE state = :s", s="failed"), 60, "the row")

Everything ends with the ``with`` block: processes, database, folder. A component that dies when it should not fails
the wait at once and says what it printed; when a test fails, the ends of all outputs are printed.
``WORKER_INSIGHT_KEEP=1`` keeps the folder of a deployment that failed.

In a browser (``browser`` is a fixture too)::

    with BrowserUser(browser, airflow, "admin", theme="dark") as person:
        person.open(f"/dags/hello/runs/{run_id}/tasks/greet")
        person.page.get_by_role("tab", name="Worker").click()
        person.screenshot(Path("tab.png"), theme="light")
        assert not person.foreign_requests

Notes for those who write tests:

- ``airflow_env(version)`` has the wheel, built once per session and never the source tree; ``bare_airflow_env`` is
  the same without it, to install onto an Airflow that has a history. Both are made once and kept below ``.build/``.
- ``Deployment.wait_for`` waits for a condition. Nothing here sleeps for a fixed time, and neither should a test.
  Limits are for a quiet machine: ``TIME_FACTOR`` (``WORKER_INSIGHT_TIME_FACTOR``, 3) multiplies all of them, and
  time-outs in ``config`` that a test waits out are longer by as much as the machine is slower.
- A session that is interrupted ends within seconds, one that is killed is cleared by its guardian: what a test starts
  has a working directory below a folder that ``guardian.guard`` was given (``Deployment`` and the services do that).
- On 2.11 ``start("api-server")`` is the web server, users live in FAB, and ``api("GET", "/dags")`` goes to /api/v1.
- ``tries()`` is the truth to compare with: all tries that Airflow itself knows of, from its own tables.
- What is missing on a machine (PostgreSQL, Redis, Chromium) skips the tests that need it, by name and reason;
  ``WORKER_INSIGHT_REQUIRE_ALL=1`` makes each of these a failure.
'''
