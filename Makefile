# Everything needs only python3 (3.11 or newer) with pip and venv; `make` alone lists the targets.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := .venv/.installed-runtime
DEV := .venv/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fix bench bench-peers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV) ## make .venv with everything that development needs

demo: $(RUNTIME) ## carry a backdoor's off switch between the shipped models and write runs/demo/report.html
	$(BIN)/isthmus demo --out runs/demo

# Bytecode is kept whatever the environment says: the tests start many processes.
test: $(DEV) ## run the tests that need neither network nor GPU
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not network and not gpu" \
		-n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(DEV) ## format, lint, types, import rules, docstrings, dependencies, dead code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pydoclint -q src
	$(BIN)/deptry .
	$(BIN)/vulture

fix: $(DEV) ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV) ## measure and write benchmarks/results/
	$(BIN)/python benchmarks/run.py

bench-peers: $(DEV) ## install nnsight, TransformerLens, pyvene … side by side and compare (package index)
	$(BIN)/python benchmarks/peer_comparison.py

clean: ## remove caches and build leftovers; keeps .venv and runs/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "isthmus needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $(RUNTIME) $@
