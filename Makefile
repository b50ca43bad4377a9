# make setup   a virtual environment in .venv; afterwards .venv/bin/unhack works
# make test    the fast tests (TEST_FLAGS='-m "slow or not slow"' for all of them)
# make demo    the main job: four arms, two seeds each, table and figure (DEMO_FLAGS='--help' lists its flags)
# make lint    ruff and pyright
# Ray (80 MB to fetch, 250 MB installed) is for the tests of its engine: make EXTRAS=dev leaves it out, they are skipped.
# Needs Python 3.11 or newer, make and git. pip's own environment variables and configuration apply.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
TEST_FLAGS ?=
EXTRAS ?= dev,ray
TEST_PROCESSES ?= 2
DEMO_FLAGS ?=

# One thread per process: the tests and the demo run one process per core.
export OMP_NUM_THREADS ?= 1

.PHONY: setup test demo lint clean

setup: $(STAMP)

# Reinstalled only when the dependencies changed; the package itself is editable.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; install one, or run make PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

test: $(STAMP)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) $(TEST_FLAGS)

demo: $(STAMP)
	$(BIN)/unhack demo $(DEMO_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
