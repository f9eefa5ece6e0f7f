# Two commands do everything on a bare machine with Python >= 3.10, pip and a C++ compiler:
#   make demo    sets up, writes the embedded data set, trains, evaluates, draws the sheet
#   make test    sets up, runs the whole suite
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/world_multimae
NATIVE := setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/cuda/*)

.PHONY: setup demo test test-suite test-triton lint clean
.DELETE_ON_ERROR:

setup: .venv/installed

# Debian splits ensurepip out of Python; virtualenv carries its own pip.
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "omnitrunk needs Python >= 3.10; set PYTHON=/path/to/it")'
	$(PYTHON) -m venv .venv || { rm -rf .venv && $(PYTHON) -m pip install --quiet --target .venv-bootstrap virtualenv && \
	  PYTHONPATH=.venv-bootstrap $(PYTHON) -m virtualenv --quiet .venv && rm -rf .venv-bootstrap; }

.venv/requirements: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed: .venv/requirements pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/omnitrunk world world
	$(BIN)/omnitrunk train configs/world_multimae.toml
	$(BIN)/omnitrunk eval $(RUN)
	$(BIN)/omnitrunk show $(RUN) -o $(RUN)/sheet.png

test: setup test-suite test-triton

# The suite on this machine; kernels are also compiled for GPUs that are not here and held against a budget.
test-suite:
	$(BIN)/python -m pytest

# The Triton kernels in Triton's interpreter, which must be asked for before a kernel is imported.
test-triton:
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/triton

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build world runs kernels/_C*.so kernels/_cuda*.so *.egg-info
