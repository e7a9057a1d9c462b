# run: set up and talk.  test: set up and test.  check: what CI runs.  bench: the numbers.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=

.PHONY: run test check lint types bench lock clean

run: .venv/run.done
	@$(BIN)/greenroom run $(ARGS)

test: .venv/dev.done
	$(BIN)/python -m pytest $(ARGS)

check: lint types test

lint: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev.done
	$(BIN)/mypy

bench: .venv/dev.done
	$(BIN)/python -m benchmarks turns --json bench-turns.json

# The lock is resolved by pip-tools; torch stays in torch.txt, and what its CUDA build asks for is left out.
lock: .venv/dev.done
	$(PIP) install --quiet pip-tools
	$(BIN)/python requirements/lock.py

clean:
	rm -rf .venv build dist *.egg-info

.venv/run.done: requirements/run.txt requirements/torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("greenroom needs Python 3.11 or later; this is " + sys.version.split()[0] + " (set PYTHON=...)" if sys.version_info < (3, 11) else 0)'
	@echo "greenroom: making .venv and installing the locked packages (about 1 GB, once)"
	$(PYTHON) -m venv .venv
	$(PIP) install --no-deps --require-hashes -r requirements/run.txt
	$(PIP) install -r requirements/torch.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev.done: .venv/run.done requirements/dev.txt
	$(PIP) install --no-deps --require-hashes -r requirements/dev.txt
	@touch $@
