# make run | test | test-cluster | lint | docs | bench | attack: each creates .venv if needed and installs the project into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_DOCS := $(VENV)/.installed-docs
INSTALLED_RAY := $(VENV)/.installed-ray

.PHONY: run test test-cluster lint docs wheel bench attack clean

run: $(INSTALLED)
	$(BIN)/oodbench run

# Use the console script: `python -m` puts the root on the import path, where our datasets/ hides the package of Hugging Face.
# One worker per core; each needs one to two gigabytes, and tests/conftest.py gives it one thread. Plain `pytest` uses no workers.
test: $(INSTALLED_TEST)
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# Runs on a Ray cluster of several nodes on this machine, of which one is killed. Without Ray, `make test` counts them as skipped.
test-cluster: $(INSTALLED_RAY)
	$(BIN)/pytest -m cluster tests/engine/test_ray_cluster.py

lint: wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build && MYPYPATH=site ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p oodbench

# The site of docs/ in build/docs. Warnings are errors, and so is a script, style, font or picture that is requested from elsewhere.
# Without --quiet, with which --strict counts no warnings.
docs: wheel $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	! grep -rnEo --include='*.html' --include='*.css' \
	  '<(script|link|img|iframe|source)[^>]* (src|href)="?(https?:)?//[^>]*|@import[^;]*|url\(["'\'']?(https?:)?//[^)]*' build/docs

# An installed wheel for tools that read sources: they do not follow the editable mapping of the four folders.
wheel: $(INSTALLED_TEST)
	rm -rf build/bdist.* build/lib build/site build/wheel
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/pip install --quiet --no-deps --target build/site build/wheel/*.whl

bench: $(INSTALLED_TEST)
	$(BIN)/pytest tests/benchmarks --benchmark-enable --benchmark-only --benchmark-autosave

# Kills, flipped bits, mutated files, resource bombs and plug-ins that misbehave. It takes 45 minutes; `make test` runs a small part.
attack: $(INSTALLED_TEST)
	$(BIN)/python tests/attack/run.py

clean:
	rm -rf build dist *.egg-info examples/*/build examples/*/*.egg-info .pytest_cache .ruff_cache .mypy_cache
	find bench detectors datasets examples leaderboard tests -name __pycache__ -prune -exec rm -rf {} +

# `run` accepts the stamp of either installation; a changed pyproject.toml or setup.py triggers a new one.
$(INSTALLED): pyproject.toml setup.py | $(BIN)/pip
	@echo "Installing oodbench into $(VENV): this takes minutes the first time, because PyTorch is large."
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(INSTALLED_TEST): pyproject.toml setup.py | $(BIN)/pip
	@echo "Installing oodbench and its test tools into $(VENV): this takes minutes the first time, because PyTorch is large."
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(INSTALLED) $@

$(INSTALLED_DOCS): $(INSTALLED_TEST)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

$(INSTALLED_RAY): $(INSTALLED_TEST)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[ray]'
	touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "oodbench needs Python 3.11 or newer, but $(PYTHON) is older; run make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
