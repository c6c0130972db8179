# Everything that a checkout needs. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CODE := seer_sgl cli tests bench

# As in an activated environment: SGLang looks for `ninja` on the PATH.
ACTIVE := PATH="$(CURDIR)/$(BIN):$$PATH"
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What the Python that makes the environment must be. Run with `-c`.
define CHECK_PYTHON
import shutil, sys
from importlib.util import find_spec
version = sys.version_info[:2]
if not (3, 11) <= version <= (3, 13):
    sys.exit("error: SGLang needs Python 3.11 to 3.13, and this is %d.%d; "
             "name another one: make PYTHON=python3.12" % version)
if version == (3, 13) and not shutil.which("cargo"):
    sys.exit("error: on Python 3.13 a package that SGLang needs (outlines-core) has to be built with "
             "Rust: apt-get install -y cargo, or name another Python: make PYTHON=python3.12")
if not (find_spec("venv") and find_spec("ensurepip")):
    sys.exit("error: this Python makes no virtual environments: apt-get install -y python3-venv")
endef
export CHECK_PYTHON

.PHONY: help setup demo test unit lint clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

setup: $(STAMP) ## make .venv and install system packages, where they are missing
	@$(BIN)/seer-sgl doctor --install

demo: setup ## run the main job on two engines and report; ARGS="--groups 4" goes to it
	@$(ACTIVE) $(BIN)/seer-sgl demo $(ARGS)

test: unit ## all tests: without a server, of the HTTP interface as a whole, on real servers
	$(ACTIVE) $(BIN)/python -m pytest tests/contract
	$(ACTIVE) $(BIN)/python -m pytest tests/integration

unit: setup ## the tests that need no server
	$(ACTIVE) $(BIN)/python -m pytest tests/unit tests/property

lint: $(STAMP) ## ruff, mypy, yamllint, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/yamllint --strict compose.yaml
	$(BIN)/hadolint Dockerfile

clean: ## remove what runs and tools leave behind; .venv stays
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { \
		command -v $(PYTHON) > /dev/null || { echo "error: there is no $(PYTHON)" >&2; exit 1; }; \
		$(PYTHON) -c "$$CHECK_PYTHON" && $(PYTHON) -m venv .venv; }
	@echo "installing into .venv; the first time about 11 GB, as SGLang pins a CUDA build of torch"
	@$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[cpu,dev]' \
		| sed -unE 's/^ *((Downloading|Using cached) .* MB\)).*/  \1/p; s/^Installing collected.*/  installing/p'
	@touch $@
