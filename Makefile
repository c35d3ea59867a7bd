# `make` alone lists the targets. The environment is made on demand in .venv; nothing has to be installed by hand.

# PYTHON: the interpreter (3.11 or newer) that .venv is made from.
# PIP_ARGS: further arguments for pip, for another build of torch: make test PIP_ARGS="--index-url <index of that build>".
# PYTEST_ARGS: further arguments for pytest: make test PYTEST_ARGS="-k flexicubes --device cuda".
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(wildcard diffmatch tests benchmarks examples docs/*.py)
PYTEST := $(BIN)/python -m pytest $(PYTEST_ARGS)
TYPED := --jaxtyping-packages=diffmatch,beartype.beartype

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-full lint bench docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | awk -F': ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

# One stamp a set of extras: .venv/stamps/mesh,images,report says that these are installed, under these constraints.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/stamps/%: pyproject.toml constraints.txt diffmatch/__init__.py | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt $(PIP_ARGS) --editable ".[$*]"
	@mkdir -p $(@D) && touch $@

demo: $(VENV)/stamps/mesh,images,report ## run every job once on what the package makes itself, write out/ with an HTML report
	$(BIN)/diffmatch demo -o out

# numba does not see edits in other files, so each run compiles into a fresh cache, which its two calls share: the first
# with the annotations checked, the second for the tests that cannot run so. Exit status 5: no test was selected. Threads
# that wait must not spin, or the tests take many times as long on a machine that has other work.
define run_tests
	@cache=$$(mktemp -d); trap 'rm -rf "$$cache"' EXIT; trap 'exit 130' INT TERM; \
	export NUMBA_CACHE_DIR="$$cache" HYPOTHESIS_PROFILE=$(1) OMP_WAIT_POLICY=PASSIVE; status=0; \
	echo "== annotations checked"; $(PYTEST) $(TYPED) -m "not untyped$(2)" || status=$$?; \
	echo "== annotations not checked"; $(PYTEST) -m "untyped$(2)" || { code=$$?; [ $$code -eq 5 ] || status=$$code; }; \
	exit $$status
endef

test: $(VENV)/stamps/test ## run the tests
	$(call run_tests,ci, and not slow)

test-full: $(VENV)/stamps/test ## run the tests with ten times the examples, and the slow ones
	$(call run_tests,full)

lint: $(VENV)/stamps/test ## check style, format and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

bench: $(VENV)/stamps/test ## run the benchmarks, write benchmarks/results.md and results.json
	$(BIN)/python benchmarks --out benchmarks

docs: $(VENV)/stamps/docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove what was built, the environment included
	rm -rf $(VENV) build dist site out .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage
	find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +
