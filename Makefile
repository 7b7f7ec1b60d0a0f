# One word per task; CI runs `check` and `test`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,12))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo
BENCHMARKS := $(sort $(shell grep -l __main__ benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help install demo test check fix bench torture clean

help:  ## list the tasks
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(READY)  ## create the environment and install both programs
$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || { \
	    echo "Storyline needs Python 3.11 or 3.12, but PYTHON is '$(PYTHON)'. Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pipeline,trainer,dev]'
	@touch $(READY)

demo: $(READY)  ## the whole road on a synthetic corpus: videos, shards, training, report
	$(BIN)/pipeline demo --out $(OUT)

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest -q

check: $(READY)  ## lint, format, types, import contracts, layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_layout.py

fix: $(READY)  ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## every script of benchmarks/: figures beside targets; CHECK=1 fails on a missed one
	@status=0; for script in $(BENCHMARKS); do \
	    echo; echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script $(if $(CHECK),--check) || status=1; \
	done; exit $$status

torture: $(READY)  ## kills, torn disks, broken files in full (35 min); writes docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture $(ARGS)

clean:  ## remove what make demo wrote (the environment stays)
	rm -rf demo
