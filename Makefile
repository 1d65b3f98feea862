# `make demo` and `make test` do all of their own set-up, from a fresh clone on.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_OFFLINE := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint bench clean

demo: $(READY)  ## simulate a marketplace and take it through every step to a report
	$(BIN)/tailrank run

test: lint  ## style, types, direction of imports, then every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations 10

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## time and memory against peers; prints the tables of BENCHMARKS.md
	$(BIN)/pytest -m bench -s tests/benches

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv lake
