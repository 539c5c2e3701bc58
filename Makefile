# `make run` and `make test` set everything up themselves; they need python3 (3.11 or newer), its venv module and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# torch goes in first: resolved together with the rest, a larger build with libraries for GPUs may be taken
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
# what `make test` needs beyond what a user runs
EXTRAS := all

.DEFAULT_GOAL := run
.PHONY: run test test-all lint bench clean

run: $(VENV)/installed
	@$(BIN)/python -m dovetail.demo

test: lint
	$(BIN)/pytest -n 2

test-all: lint
	$(BIN)/pytest -n 2 -m ""

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed
	@for script in benchmarks/*.py; do echo "== $$script"; PYTHONPATH=. $(BIN)/python -P $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Dovetail needs Python 3.11 or newer, found " + sys.version.split()[0] + "; choose one with make PYTHON=python3.11")'
	@echo "setting up $(VENV) (some minutes the first time)"
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) has no working venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(PIP) "$(TORCH)"
	@$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "adding what the tests need"
	@$(PIP) -e '.[$(EXTRAS)]'
	@touch $@
