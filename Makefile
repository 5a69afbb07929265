# The two commands: `make nightly` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STORE  ?= store

.PHONY: help setup nightly test test-pythons azurite results scores wheel bench bench-gpu cluster soak lock
.DEFAULT_GOAL := help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

setup: $(VENV)/.ready   ## a virtual environment from requirements.lock (uv, hashes checked)

$(VENV)/.ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

nightly: setup   ## the main job on the embedded default: demonstrations -> a better policy, with proof
	$(BIN)/flywheel nightly store=$(STORE) $(ARGS)

test: setup      ## ruff and all tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pytest -n 2 --dist loadgroup

test-pythons:    ## a short form on every Python that is found here, of those that the metadata promises
	bash tests/pythons.sh

azurite: setup   ## Azure's storage server for the tests of object stores, from npm; without it they are skipped
	npm install --prefix $(VENV)/azurite --no-fund --no-audit --silent azurite@3

soak: setup      ## the durability tests at length (docs/reliability.md), the slow tests, and README as a newcomer would run it
	$(BIN)/python tests/soak.py
	$(BIN)/pytest -m slow
	bash tests/newcomer.sh

results: setup   ## the learning results of docs/results.md (hours; goes on where it stopped; needs FLYWHEEL_DEMOS)
	$(BIN)/python benchmarks/results.py

scores: setup    ## the scores of docs/results.md: every algorithm on small tasks (hours; goes on where it stopped)
	$(BIN)/python benchmarks/scores.py

wheel: setup     ## the whole wheel at 200,000 steps, in docs/results.md (hours; goes on where it stopped)
	$(BIN)/python benchmarks/wheel.py

cluster: setup   ## a simulated cluster of 1,000 workers, real ones on loopback (Ray; Slurm where Debian's packages are), one night by each executor
	$(BIN)/uv pip install --quiet --python $(BIN)/python ray submitit
	$(BIN)/python benchmarks/cluster.py
	$(BIN)/pytest -m "slow or not slow" tests/test_executors.py
	$(BIN)/python benchmarks/engines.py

bench: setup     ## speed, as ratios against peers in one run (benchmarks/scale.py is apart)
	$(BIN)/python benchmarks/stepping.py
	$(BIN)/python benchmarks/collecting.py
	$(BIN)/python benchmarks/executors.py
	$(BIN)/python benchmarks/corpus.py
	$(BIN)/python benchmarks/near.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/cameras.py
	$(BIN)/python benchmarks/drawing.py
	$(BIN)/python benchmarks/rounds.py
	$(BIN)/python benchmarks/cli.py
	$(BIN)/python benchmarks/learning.py

bench-gpu: setup ## updates a second on a GPU; skipped without one
	$(BIN)/python benchmarks/learning.py --gpu

lock:            ## resolve pyproject.toml again, for Python 3.11 and later on every platform
	uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	    --extra adroit --extra cloud --extra export --extra query --extra ros --extra test --quiet --no-header --no-annotate pyproject.toml --output-file requirements.lock
