# edgetun: `make` lists the targets. Needs Python 3.11 or newer, git and make; everything else is set up in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit check lint format types layers generated generate bench fuzz clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(SETUP)  ## Make .venv with edgetun and the tools for working on it

$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edgetun needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

demo: $(SETUP)  ## Put a real local server behind 10,000 visitors, and print what reached it
	@$(BIN)/edgetun demo

test: $(SETUP)  ## Run every test, the quick ones first (the first time with Go there: 15 minutes more, for a Kubernetes)
	@$(BIN)/python -m pytest

test-unit: $(SETUP)  ## Run the tests of pure logic: seconds
	@$(BIN)/python -m pytest -q tests/unit tests/golden

check: lint types layers generated  ## What CI checks before the tests

lint: $(SETUP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(SETUP)  ## Format the code and mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(SETUP)
	@$(BIN)/mypy

layers: $(SETUP)
	@$(BIN)/lint-imports

generated: $(SETUP)
	@$(BIN)/python -m edgetun.generate --check

generate: $(SETUP)  ## Write the generated files anew (reference pages, examples' index)
	@$(BIN)/python -m edgetun.generate

bench: $(SETUP)  ## Run the benchmarks beside their peers (long; wants a quiet machine)
	@$(BIN)/python bench/all.py

fuzz: $(SETUP)  ## Fuzz every parser of network bytes for FUZZ_SECONDS (default 60) each
	@$(BIN)/python tests/fuzz/run.py --seconds $${FUZZ_SECONDS:-60}

clean:  ## Remove what the targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
