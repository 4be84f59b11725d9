# Two commands for a fresh machine: `make demo` shows llvq at work, `make test` tests it.
# Both set up a virtual environment of their own first. PyTorch comes as the CPU build.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test lint docs clean

demo: $(VENV)/.ready
	$(BIN)/python -m examples.demo $(DEMO)

# A worker per core, a file of tests to one worker: what a file sets up is set up once.
test: $(VENV)/.ready lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.ready
	$(BIN)/python -m docs.generate

# torch first and alone: anything else that wants it would bring gigabytes of CUDA along.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache
