# `make serve` and `make test` need Python 3.11, make and a package registry; nothing else.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: serve test check format clean

serve: $(VENV)/installed  ## run a server in the foreground on defaults; make serve ARGS="--l1-size 4GiB"
	$(BIN)/lmcache-mp serve $(ARGS)

test: $(VENV)/installed  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/installed  ## style, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m tests.import_directions

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
