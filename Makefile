# Every target sets up what it needs: a fresh clone and `make demo` or `make test` is all there is to do.
# The folder of the clone may have any name: no rule speaks of it, paths here are relative.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# torch comes as a CPU build where there is one; on a GPU machine: make GPU=1 setup
INSTALL := "$(PYTHON)" tools/install.py $(if $(GPU),--gpu)
LOCKED  := pyproject.toml constraints.txt tools/install.py
# One thread per test process: small tensors are slower on more, and results stay the same on every machine. A file's tests stay
# together, since they share what was made for the first of them. Bytecode is kept, whatever the machine says of it: the tests start
# many a process, and each would compile the package anew.
TEST_ENV := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
AT_ONCE  := --numprocesses $(shell "$(PYTHON)" -c 'import sys; sys.path.insert(0, "src"); from outlay.hardware.quota import suite_workers; print(suite_workers())') --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-slow test-bench test-oldest test-newest lock lint format clean

# What the demo needs; `make test` adds the rest to the same environment.
$(VENV)/.stamp-demo: $(LOCKED)
	$(INSTALL) demo $(VENV)
	@touch $@

$(VENV)/.stamp: $(LOCKED)
	$(INSTALL) dev $(VENV)
	@touch $(VENV)/.stamp-demo $@

setup: $(VENV)/.stamp

demo: $(VENV)/.stamp-demo
	$(BIN)/outlay demo

test: setup
	$(TEST_ENV) $(BIN)/python -m pytest $(AT_ONCE)

# Minutes: fifty kills, the other cases of what `make test` tries in one or two, and the tests that read the public data sets in $$OUTLAY_DATA (skipped where that is not set).
test-slow: setup
	$(TEST_ENV) $(BIN)/python -m pytest -m "slow or integration or bench"

# The programs of bench/ at toy scale: that they compare the same thing and run through.
test-bench: setup
	$(TEST_ENV) $(BIN)/python -m pytest -m bench $(AT_ONCE)

# The two ends of the ranges in pyproject.toml, each in an environment of its own, without what this machine tells pip.
test-oldest test-newest: test-%: .venv-lock/.stamp
	OUTLAY_PYTHON="$(PYTHON)" .venv-lock/bin/python tools/lock.py $* .venv-lock/$*.txt
	$(INSTALL) --alone --constraints .venv-lock/$*.txt dev .venv-$*
	$(TEST_ENV) .venv-$*/bin/python -m pytest $(AT_ONCE)

# constraints.txt anew: the newest versions that the ranges allow.
lock: .venv-lock/.stamp
	.venv-lock/bin/python tools/lock.py

.venv-lock/.stamp:
	"$(PYTHON)" -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis outlay-runs
