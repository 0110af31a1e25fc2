# Everything is made below .build/, which `make clean` removes. No target needs anything but Python 3.10 or newer.
PYTHON ?= python3
ARGS ?=
AIRFLOW ?= 3.3.2
UNITS ?= tests/unit

ENVIRONMENTS = $(PYTHON) -m tests.support.environments
# The environment with Airflow, the test tools and this source tree; made by the first target that asks for it.
DEV = dev=$$($(ENVIRONMENTS) dev $(AIRFLOW)) &&

.PHONY: help demo test unit bench lint format format-check typecheck architecture wheel docs reference services clean

help:
	@echo "demo        Airflow with the example Dags, and who ran each try (ARGS=--once: look and leave)"
	@echo "test        all tests (ARGS='-k name' and so on go to pytest)"
	@echo "unit        the unit tests alone (AIRFLOW=2.11.2: on that version; UNITS=tests/unit/store: some of them)"
	@echo "bench       the measurements, as a table and as JSON"
	@echo "lint        ruff; and format, typecheck, architecture"
	@echo "wheel       build the wheel into dist/"
	@echo "docs        build the documentation into .build/site; a broken link fails"
	@echo "reference   write what docs/reference takes from the code"
	@echo "clean       remove everything that was made"

demo:
	@$(PYTHON) scripts/demo $(ARGS)

# Two processes side by side must name the cases that are sets alike.
export PYTHONHASHSEED = 0

# exec: make passes SIGTERM to its own child only, and that has to be pytest.
# Two files of tests side by side: most of the time one of them waits for processes of Airflow's, or a database.
# The browser's client leaves an event loop behind, so the unit tests have processes of their own.
test: services
ifeq ($(strip $(ARGS)),)
	@$(DEV) exec "$$dev/bin/python" -m pytest tests/unit -n 2 --dist loadfile
	@$(DEV) exec "$$dev/bin/python" -m pytest tests/integration -n 2 --dist loadfile
else
	@$(DEV) exec "$$dev/bin/python" -m pytest $(ARGS)
endif

unit:
	@$(DEV) exec "$$dev/bin/python" -m pytest $(UNITS) $(ARGS)

bench: services
	@$(DEV) "$$dev/bin/python" -m tests.benchmarks $(ARGS)

lint:
	@$(DEV) "$$dev/bin/ruff" check . scripts/demo

format:
	@$(DEV) "$$dev/bin/ruff" check --fix --select I . scripts/demo && "$$dev/bin/ruff" format . scripts/demo

format-check:
	@$(DEV) "$$dev/bin/ruff" format --check . scripts/demo

typecheck:
	@$(DEV) "$$dev/bin/mypy"

architecture:
	@$(DEV) "$$dev/bin/lint-imports"

wheel:
	@$(ENVIRONMENTS) wheel | xargs -I{} sh -c 'mkdir -p dist && cp "{}" dist/ && ls dist/*.whl'

docs:
	@docs=$$($(ENVIRONMENTS) docs) && NO_MKDOCS_2_WARNING=1 "$$docs/bin/mkdocs" build --strict --clean

reference:
	@$(DEV) "$$dev/bin/python" -m scripts.generate_reference

services:
	@scripts/install-services

clean:
	rm -rf .build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
