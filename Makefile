# Every target sets up what it needs: a fresh clone and `make demo` or `make test` is all there is to do.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The CPU build where the machine offers one; on a GPU machine: make TORCH="torch>=2.8,<2.14" setup
TORCH  ?= torch==2.13.0
# One thread per test process: small tensors are slower on more, and results stay the same on every machine. A file's tests stay
# together, since they share what was made for the first of them.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
AT_ONCE  := --numprocesses $(shell $(PYTHON) -c 'import os; print(min(4, len(os.sched_getaffinity(0))))') --dist loadfile

.PHONY: setup demo test test-slow lint format clean

$(VENV)/.stamp: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "outlay needs Python 3.11 or later"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

setup: $(VENV)/.stamp

demo: setup
	$(BIN)/outlay demo

test: setup
	$(TEST_ENV) $(BIN)/python -m pytest $(AT_ONCE)

# Minutes: fifty kills, and the tests that read the public data sets in $$OUTLAY_DATA (skipped where that is not set).
test-slow: setup
	$(TEST_ENV) $(BIN)/python -m pytest -m "slow or integration"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis outlay-runs
