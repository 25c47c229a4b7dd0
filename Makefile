# `make train` watches a model learn to click; `make test` checks everything. Both work on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TASK ?=
MODEL ?= tiny
ARGS ?=
CONSTRAINTS ?= -c constraints.txt
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS)
HERE := --config-settings editable_mode=compat  # importable from the folder above a clone too, where vlm_agent/ is the clone
export TOKENIZERS_PARALLELISM = false
export OMP_NUM_THREADS ?= 1  # the tiny model is fastest on one thread

.PHONY: train eval test test-slow bench bench-environments bench-memory bench-learning docs chromium clean help

help:
	@grep -E '^# |^[a-z-]+:.*##' Makefile | sed 's/:.*##/  -/'

$(VENV)/.run: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(HERE) -e '.[browser]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) $(HERE) -e '.[dev]'
	touch $@

chromium: $(VENV)/.run  ## find a Chromium, or install one (apt where root, else playwright's own)
	$(BIN)/python -c 'from vlm_agent.browser import install_chromium; print(install_chromium())'

train: $(VENV)/.run $(if $(filter miniwob/% web:%,$(TASK)),chromium)  ## train MODEL (default tiny, the embedded base) on TASK (default: its configuration's): make train TASK=miniwob/focus-text
	$(BIN)/python examples/train_qwen2_vl.py --mode train --model $(MODEL) $(if $(TASK),--task $(TASK)) $(ARGS)

eval: $(VENV)/.run  ## look at what the last training run made
	$(BIN)/python examples/train_qwen2_vl.py --mode test $(if $(TASK),--task $(TASK)) $(ARGS)

test: $(VENV)/.dev chromium  ## notebooks clean, in sync and green, and all of tests/; with the newest of everything: make test VENV=.venv-newest CONSTRAINTS=
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-slow: $(VENV)/.dev chromium  ## the cells and tests that take minutes
	$(BIN)/python -m pytest --slow $(ARGS)

bench:  ## all of the benchmarks, one after the other
	$(MAKE) bench-learning ARGS=
	$(MAKE) bench-memory ARGS=
	$(MAKE) bench-environments ARGS=

bench-environments: $(VENV)/.dev  ## episodes a second of the environments
	$(BIN)/python benchmarks/environment_throughput.py $(ARGS)

bench-memory: $(VENV)/.dev  ## predicted against measured peaks of a training step
	$(BIN)/python benchmarks/memory_check.py $(ARGS)

docs: $(VENV)/.dev  ## the site, into _docs/: with Quarto where it is installed, else with smalldocs
	$(BIN)/python nbs/site/build.py

$(VENV)-bench/.ready: benchmarks/requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(HERE) -e . -r benchmarks/requirements.txt
	$(VENV)-bench/bin/python -m pip install -q --disable-pip-version-check --no-deps torchvision==0.28.0
	touch $@

bench-learning: $(VENV)-bench/.ready  ## acting and learning beside TRL, Hugging Face's Trainer and plain generate
	$(VENV)-bench/bin/python benchmarks/shared_prefix.py $(ARGS)

clean:
	rm -rf _proc _docs build dist *.egg-info .pytest_cache
