# make run   set up and run the main job: BERT-base, traced from PyTorch, on a 32x32 systolic array
# make test  set up and run the tests
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test setup lint clean

run: .venv/.installed
	$(BIN)/accelsim simulate bert-base --platform systolic-32x32 --retrace

test: .venv/.test
	$(BIN)/python -m pytest -n 2

setup: .venv/.test

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict accelsim

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "accelsim needs Python 3.11 or newer: make PYTHON=python3.11 run")'
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) "torch==2.13.0"
	$(PIP_INSTALL) -e ".[torch]"
	touch $@

.venv/.test: .venv/.installed
	$(PIP_INSTALL) -e ".[torch,search,ray,ref,test,dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
