# Each target sets up what it needs: `make finetune` and `make test` work on a fresh machine.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
OUT ?= runs/finetune
ARGS ?=
SITE ?= .cache/site
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.3

# Frameworks with an adapter that is tested inside them, each in an environment of its own.
ADAPTERS := $(notdir $(patsubst %/,%,$(dir $(wildcard tests/adapters/*/requirements.txt))))

# What must also hold under the XLA flags of users: figures, bits, a whole run in one program.
USERS_FLAGS := tests/test_golden.py tests/numerics/test_beta_draws.py \
  tests/test_compilation.py::test_one_compilation_of_a_whole_run \
  tests/test_auto.py::test_agrees_with_the_equations \
  tests/test_contract.py::test_update_is_observe_then_advance \
  "tests/test_contract.py::test_runs_in_scan_and_vmap[auto]" \
  "tests/test_contract.py::test_runs_in_scan_and_vmap[bots]"

.PHONY: finetune test lint types unit test-long users-flags format notebooks clean test-adapters wheel-check site

finetune: $(VENV)/.run  ## finetune a small policy on tasks that the engine selects; goes on where it stopped
	$(BIN)/bots-jax finetune --out $(OUT) --resume $(ARGS)

test: lint types unit users-flags  ## everything that must hold

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# Workers and tests compile the same programs, most of them in less than the 0.3 s of above.
unit test-long users-flags: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0.05

unit: $(VENV)/.test
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not long" $(ARGS)

test-long: $(VENV)/.test  ## what `make test` leaves out: wider repetitions of its tests
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m long $(ARGS)

users-flags: $(VENV)/.test  ## the rest runs with XLA's optimisations off (tests/conftest.py)
	BOTS_JAX_USERS_FLAGS=1 $(BIN)/pytest -n $(WORKERS) $(USERS_FLAGS)

test-adapters: $(ADAPTERS:%=test-adapter-%)  ## each framework's environment, and the tests inside it

test-adapter-%: .venv-%/.test
	.venv-$*/bin/python -m pytest tests/adapters/$* $(ARGS)

.venv-%/.test: tests/adapters/%/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --editable . --requirement $<
	if [ -e tests/adapters/$*/no-deps.txt ]; then .venv-$*/bin/python -m pip install --quiet \
	  --no-deps --requirement tests/adapters/$*/no-deps.txt; fi
	touch $@

.PRECIOUS: .venv-%/.test

wheel-check:  ## the built wheel in clean environments, on each Python and extra at hand
	$(PYTHON) benchmarks/wheel_check.py

site: .venv-site/.site  ## the pages, notebooks and docstrings as HTML; a dead link is an error
	.venv-site/bin/python docs/make_site.py --out $(SITE)

.venv-site/.site: pyproject.toml
	$(PYTHON) -m venv .venv-site
	.venv-site/bin/python -m pip install --quiet --editable '.[site]'
	touch $@

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(VENV)/.notebooks  ## run notebooks/ anew, outputs included; BOTS_JAX_TRACE=FILE for 02
	cd notebooks && $(abspath $(BIN))/jupyter execute --inplace --timeout=3600 *.ipynb

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[cli,plots]'
	touch $@

$(VENV)/.notebooks: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) .venv-* .cache runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
