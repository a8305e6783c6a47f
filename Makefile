# What people and CI type. Every target prints a line a step, asks nothing, and makes the environment first if it is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup launcher demo test check clean distclean

VENV ?= .venv
LAUNCHER_VENV ?= .venv-launcher
RING ?=
# Tests on the real Slurm submit as an ordinary user, who cannot execute a Python below somebody's home folder; the system's he can.
SYSTEM_PYTHON := $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3)
PYTHON ?= $(if $(filter full,$(RING)),$(or $(SYSTEM_PYTHON),python3),python3)
PY := $(VENV)/bin/python

help:
	@echo "make setup      the environment: $(VENV), 6 GB, everything pinned by constraints.txt"
	@echo "make launcher   a small one for login nodes: $(LAUNCHER_VENV), under 100 MB, no torch"
	@echo "make demo       a whole sweep on this machine: digits, baseline and SE, 2 seeds each; table and figures in runs/demo"
	@echo "make test       what this machine can test; names what it skipped. RING=full: everything. RING=unit|faults|slurm|gpu: one ring"
	@echo "make check      format, lint, types"
	@echo "make clean      caches and build leftovers; distclean removes the environments too. Neither touches runs/ or data/"
	@echo "PYTHON=..., VENV=... and LAUNCHER_VENV=... name another Python and other places"

setup: $(VENV)/.ready

$(VENV)/.ready: setup.cfg constraints.txt
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash tools/setup.sh full

launcher: $(LAUNCHER_VENV)/.ready
	@echo "launcher: use it as $(LAUNCHER_VENV)/bin/python -m hpc.launch --sweep SWEEP.yaml"

$(LAUNCHER_VENV)/.ready: setup.cfg constraints.txt
	@PYTHON="$(PYTHON)" VENV="$(LAUNCHER_VENV)" bash tools/setup.sh launcher

demo: setup
	@$(PY) -m hpc.launch --sweep configs/demo.yaml --local
	@$(PY) -m hpc.collect runs/demo

test: setup
	@RING="$(RING)" $(PY) tools/run_rings.py

check: setup
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

clean:
	@rm -rf .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
	@find . -path './.venv*' -prune -o -path ./runs -prune -o -path ./data -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
	@echo "clean: caches and build leftovers are gone"

distclean: clean
	@for place in "$(VENV)" "$(LAUNCHER_VENV)"; do if [ -f "$$place/pyvenv.cfg" ]; then rm -rf "$$place"; echo "distclean: $$place is gone"; fi; done
