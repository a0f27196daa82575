# Two commands are all the set-up: `make demo` and `make test`. Everything goes into .venv; a second run reuses it.
PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt
USE_STAMP := $(VENV)/.installed
DEVELOP_STAMP := $(VENV)/.installed-test-lint
ARM64 := tests/runtime_tests/llamacpp/arm64
TYPED := build/typing/lowrank_export
TYPED_ENTRIES := __init__.py __main__.py cli.py py.typed converter exporters runtime_tests

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-arm lint format types clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(USE_STAMP) ## compress, export and validate the demo model; leaves everything in out/demo
	$(BIN)/lowrank-export runtime build
	$(BIN)/lowrank-export --model demo --format gguf --format onnx --retention 0.8 --out out/demo --force

test: $(DEVELOP_STAMP) ## every test, the slow ones too; not those for arm64
	$(BIN)/lowrank-export runtime build
	$(BIN)/python -m pytest -m "not arm" --junitxml=build/test-results.xml $(PYTEST_ARGS)

test-quick: $(DEVELOP_STAMP) ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow and not arm" $(PYTEST_ARGS)

test-arm: $(DEVELOP_STAMP) ## factored GGUF files on emulated arm64 processors; says what to install
	$(BIN)/python $(ARM64)/cross.py
	$(BIN)/lowrank-export runtime build
	$(BIN)/python -m pytest $(ARM64) --junitxml=build/test-results-arm.xml $(PYTEST_ARGS)

lint: $(DEVELOP_STAMP) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEVELOP_STAMP) ## let ruff format and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The package is the project's root under another name; mypy sees it through a folder of links. Links to the entries,
# not one link to the root, or the folder would contain itself.
types: $(DEVELOP_STAMP) ## mypy --strict
	rm -rf $(TYPED)
	mkdir -p $(TYPED)
	for entry in $(TYPED_ENTRIES); do ln -s "$(CURDIR)/$$entry" "$(TYPED)/$$entry"; done
	$(BIN)/mypy -p lowrank_export

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(USE_STAMP): $(PINS) | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e .
	touch $@

$(DEVELOP_STAMP): $(PINS) | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[test,lint]'
	touch $@ $(USE_STAMP)

clean: ## remove what was built, tested and exported here
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also the virtual environment
	rm -rf $(VENV) *.egg-info
