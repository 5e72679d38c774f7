# `make demo` and `make test` need make and Python 3.11 or later; both set up $(VENV) on their first run.

VENV ?= .venv
# The first interpreter that really runs (a version manager's shim may exist and fail) and can make environments.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)

# Real recordings and speed references are used where they stand beside the checkout.
SHARED := $(abspath $(CURDIR)/../shared)
ifeq ($(origin PHYSPPL_DATA),undefined)
ifneq ($(wildcard $(SHARED)/data/.),)
export PHYSPPL_DATA := $(SHARED)/data
endif
endif
ifeq ($(origin PHYSPPL_PERF),undefined)
ifneq ($(wildcard $(SHARED)/perf/.),)
export PHYSPPL_PERF := $(SHARED)/perf
endif
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NO_ADDOPTS := --override-ini addopts=

.PHONY: demo test lint bench science mutants docs clean
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	$(BIN)/physppl demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(NO_ADDOPTS) tests/benchmarks

science: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(NO_ADDOPTS) --ignore=tests/benchmarks -m science

# Planted faults, by default all: `make mutants FAULTS=kalman`, `make mutants FAULTS=--list`.
mutants: $(VENV)/.installed-dev
	$(BIN)/python tests/mutants/run.py $(FAULTS)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site out .benchmarks .coverage .hypothesis .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No working Python 3.11 or later found; set PYTHON=/path/to/python." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(PIP) --editable ".[docs]"
	@touch $@ $(VENV)/.installed
