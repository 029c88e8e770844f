# Every target does its own set-up: it makes .venv, installs into it, and costs a second when that is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= demo

.PHONY: help setup demo test test-all fuzz lint types format clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY) ## Create .venv and install beit with the tested versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("beit needs Python 3.11 or newer (this is %s); try: make PYTHON=python3.11" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@# The references that DALL-E's files and DINO's loss are tested against. Without what they ask for: torchvision is tied to
	@# one build of torch and would replace ours; what they really import is in the dev extra.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps DALL-E lightly
	@touch $@

demo: setup ## The whole chain on generated images, minutes on two cores
	$(BIN)/beit demo $(DEMO)

lint: setup ## Format check and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## Type check; through a link named beit, because type checkers do not follow editable installs
	@mkdir -p .typecheck && ln -sfn .. .typecheck/beit
	cd .typecheck && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml -p beit.common -p beit.tokenize -p beit.pretrain -p beit.finetune -m beit.plan -m beit.cli

format: setup ## Mend format and lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint types ## Lint, types, unit and parity tests, one end-to-end run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not (fault or launch or docs or slow or gpu)'

test-all: setup ## What make test leaves out: faults, launches, documented commands
	@# Two at a time, since most of them wait for processes they started; one thread each, or torch's would wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m '(fault or launch or docs or slow) and not gpu'

fuzz: setup ## 100 000 damaged files, of every kind that is read (BEIT_FUZZ_CASES and BEIT_FUZZ_SEED change that)
	BEIT_FUZZ_CASES=$${BEIT_FUZZ_CASES:-100000} $(BIN)/python -m pytest -m slow tests/fuzz

clean: ## Remove what the targets made
	rm -rf $(VENV) .typecheck build *.egg-info demo
