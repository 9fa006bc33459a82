# Two commands on a machine with Python 3.10+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux the registry's newest torch brings gigabytes of CUDA; set TORCH="torch" to get it.
TORCH ?= torch==2.13.0
# The models of demo and tests are too small to gain from threads.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test lint docs clean

help:
	@echo "make demo   install into $(VENV) and run the main job offline (about a minute after the installation)"
	@echo "make test   install what the tests need and run them"
	@echo "make lint   ruff check and format"
	@echo "make docs   build the documentation into build/site"

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'hf-gradkit needs Python 3.10 or newer; set PYTHON=python3.x')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[plots]"
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/gradkit demo
	@echo "         gradkit is in $(VENV): first run  . $(BIN)/activate"

# Tests that start processes of their own run after the rest, two files at a time: while they start, they wait a lot.
test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 -m "not multiprocess" tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m multiprocess tests

lint: $(BIN)/python
	$(BIN)/python -m pip install --quiet "ruff==0.17.6"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.docs: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	@echo "The documentation is in build/site: open build/site/index.html, or python -m http.server -d build/site"

clean:
	rm -rf $(VENV) gradkit_demo build dist
