# Two commands do all the set-up: `make demo` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# A process a core, one thread each; a file's tests stay together, for what they share.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

.PHONY: demo test oracle lint types check bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## convert a small model that the project made itself; nothing is downloaded
	$(BIN)/quantkit demo --out demo-output

test: $(STAMP)  ## the default tests, under ten minutes on two cores
	$(PYTEST)

oracle: $(STAMP)  ## tests against environments of other versions, built on the spot
	$(PYTEST) -m oracle

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

bench: $(STAMP)  ## quantkit beside transformers' own route; appends to bench/RESULTS.md
	$(BIN)/python bench/bnb.py

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache
