# The two commands: `make demo` and `make test`. Both make .venv and install what they need; no other step is asked for.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

# Hundreds of processes import the same modules: they are compiled once, also where the user's environment says otherwise.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test setup quick lint pytest clean

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; install Python 3.11 or say PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	-$(PIP) "uv>=0.9,<1"

# uv unpacks on all cores, in a third of the time of pip. It does not read pip's settings, so pip installs where they name
# an index of their own, and where there is no uv or it fails; the pip of Python 3.11 downloads whole wheels to read what they
# require (half a minute more), so a newer one comes first. Nothing is compiled ahead: that takes more than a minute, and
# most modules of the libraries are never imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
define install
	@if ! $(BIN)/python -m pip config list | grep -q '[.]index' && [ -x $(BIN)/uv ] \
	    && $(BIN)/uv pip install --quiet --python $(BIN)/python --editable "$(1)"; \
	  then :; else $(PIP) "pip>=25,<27"; $(PIP) --no-compile --editable "$(1)"; fi
endef

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(call install,.[test])
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	$(BIN)/alignkit run demo --output_dir $(DEMO)

setup: $(VENV)/.installed-test

test: setup
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

# Three processes are faster than two on two cores: tests wait for servers, signals and deadlines (docs/log.md).
pytest: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q --durations=15 -n $${TEST_PROCESSES:-3} --dist=loadfile --no-loadscope-reorder

quick: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -x -n 2 -m "not slow and not distributed and not browser"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
