# Everything happens in .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/.core  ## from nothing to a verdict: the first convolutional network, re-run
	$(BIN)/assay run lecun1989

test: .venv/.test  ## the whole test suite, a worker for every core
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/.dev  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.dev  ## against what one would use instead
	$(BIN)/python benchmarks/run.py

.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/.test: .venv/.core peers.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install -q --no-deps -r peers.txt
	touch $@

.venv/.dev: .venv/.test
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv dist build
