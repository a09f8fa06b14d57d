# make run | test | lint | bench | attack: each creates .venv if needed and installs the project into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test

.PHONY: run test lint bench attack clean

run: $(INSTALLED)
	$(BIN)/oodbench run

# Use the console script: `python -m` puts the root on the import path, where our datasets/ hides the package of Hugging Face.
# One worker per core; each needs one to two gigabytes, and tests/conftest.py gives it one thread. Plain `pytest` uses no workers.
test: $(INSTALLED_TEST)
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# Types are checked on an installed wheel: checkers do not follow the editable mapping of the four folders.
lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/pip install --quiet --no-deps --target build/site build/wheel/*.whl
	cd build && MYPYPATH=site ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p oodbench

bench: $(INSTALLED_TEST)
	$(BIN)/pytest tests/benchmarks --benchmark-enable --benchmark-only --benchmark-autosave

# Kills, flipped bits, mutated files, resource bombs and plug-ins that misbehave. It takes half an hour; `make test` runs a small part.
attack: $(INSTALLED_TEST)
	$(BIN)/python tests/attack/run.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find bench detectors datasets leaderboard tests -name __pycache__ -prune -exec rm -rf {} +

# `run` accepts the stamp of either installation; a changed pyproject.toml or setup.py triggers a new one.
$(INSTALLED): pyproject.toml setup.py | $(BIN)/pip
	@echo "Installing oodbench into $(VENV): this takes minutes the first time, because PyTorch is large."
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(INSTALLED_TEST): pyproject.toml setup.py | $(BIN)/pip
	@echo "Installing oodbench and its test tools into $(VENV): this takes minutes the first time, because PyTorch is large."
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(INSTALLED) $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "oodbench needs Python 3.11 or newer, but $(PYTHON) is older; run make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
