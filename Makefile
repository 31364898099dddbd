# Two commands on a fresh machine: `make demo`, `make test`. Everything runs in .venv, which is made once and again
# whenever the pins change. PYTHON picks the interpreter, TORCH_INDEX where PyTorch comes from.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Without a GPU, PyTorch's CPU index spares gigabytes of CUDA libraries: make TORCH_INDEX=URL demo (see README).
TORCH_INDEX ?=

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install demo seeds study hh test quick lint mutants bench docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv and install the pinned packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Trueline needs Python 3.11 or later; $(PYTHON) is older or missing. Give another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  $(BIN)/pip install -q --retries 1 --timeout 20 -c constraints.txt --index-url $(TORCH_INDEX) torch || \
	  echo "$(TORCH_INDEX) does not answer; PyTorch comes from the default index." >&2; fi
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## the main job on the embedded lab; writes demo/report.html
	$(BIN)/trueline demo

seeds: $(STAMP)  ## the demo over five seeds, with its table
	$(BIN)/trueline demo --seeds 5 --output seeds

study: $(STAMP)  ## every method under one budget, five seeds (hours; goes on where it stopped)
	$(BIN)/trueline study methods

hh: $(STAMP)  ## the HH recipe on human pairs: new model, SFT, reward model, DPO and IPO
	$(BIN)/python recipes/hh.py

test: $(STAMP)  ## every test
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

quick: $(STAMP)  ## the fast tests, under a minute
	$(BIN)/python -m pytest -n 2 -m 'not slow and not browser' $(PYTEST_ARGS)

lint: $(STAMP)  ## style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutants: $(STAMP)  ## plant every committed error; a named test must catch each. AREA=engine selects
	$(BIN)/python tests/run_mutants.py $(AREA)

bench: $(STAMP)  ## speed, memory and scale beside TRL and transformers, under 30 minutes. ROW="NAME ..." selects
	$(BIN)/python -m benchmarks $(ROW)

docs: $(STAMP)  ## the documentation as static pages in site/
	$(BIN)/python -m scripts.status
	$(BIN)/python -m trueline.docs_build site

clean:  ## remove what make made
	rm -rf .venv site build
