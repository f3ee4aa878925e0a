# make demo    install, then the whole main job on rendered videos (minutes)
# make test    install, then linters, types, layers and tests
# make check   the same and the tests that take minutes
# make bench   what docs/performance.md claims, measured; bench-quick in minutes, bench in an hour or more

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Class folders of real videos for the benchmarks; rendered ones stand in where there are none.
CLIPS ?= ../shared/data/surveillance-fight/clips

.PHONY: install demo test check lint bench bench-quick clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Tillwatch needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/tillwatch demo --out tillwatch-demo --overwrite

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A process a core, so a thread a process: threads that wait for each other on a shared core waste most of it.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "not slow"

check: lint
	$(BIN)/pytest

bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench.py --clips $(CLIPS)

bench-quick: $(INSTALLED)
	$(BIN)/python benchmarks/bench.py --clips $(CLIPS) --quick

clean:
	rm -rf $(VENV) tillwatch-demo results
