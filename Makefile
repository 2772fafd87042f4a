# gradkit: `make run` trains and reads a spectrum, `make test` passes the tests. Both build .venv when it is missing.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/digits_adam-$(shell date +%Y%m%d-%H%M%S)

.PHONY: run test test-all lint env newest experiments benchmarks clean

run: env
	$(BIN)/gradkit run configs/digits_adam.yaml --out $(RUN)
	$(BIN)/gradkit spectrum $(RUN)

test: env
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow'

test-all: env
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

experiments: env
	$(BIN)/python experiments/run.py

benchmarks: env
	$(BIN)/python benchmarks/step_and_hvp.py
	$(BIN)/python benchmarks/update.py
	$(BIN)/python benchmarks/spectrum.py

# The contract and flow tests with the newest JAX, on a newer Python where the machine has one.
newest:
	@./.ci/newest

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "gradkit needs Python 3.11 or newer on the PATH; found $$(python3 --version 2>&1). Or name one: make PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest
