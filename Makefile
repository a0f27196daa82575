# Two commands are all the set-up: `make demo` and `make test`. Everything goes into .venv; a second run reuses it.
PYTHON ?= python3
PYTEST_ARGS ?=
CONSTRAINTS ?= -c constraints.txt
# A process per core, each with whole files; memory for every further one: about 1.5 GB
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What is imported compiles itself once, unless Python was told not to write that down; all else saves half a minute.
INSTALL := $(PIP) install $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) -c constraints.txt
PARALLEL := --numprocesses $(WORKERS) --maxprocesses 8 --dist loadscope --no-loadscope-reorder
PINS := pyproject.toml constraints.txt
USE_STAMP := $(VENV)/.installed
DEVELOP_STAMP := $(VENV)/.installed-test-lint
WHEEL_VENV = build/wheel-venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
WHEEL_PIP = $(WHEEL_VENV)/bin/python -m pip --disable-pip-version-check
ARM64 := tests/exporters/llamacpp/arm64
TYPED := build/typing/lowrank_export
TYPED_ENTRIES := __init__.py __main__.py cli.py py.typed converter exporters runtime_tests

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-arm test-wheel test-processors reproduce has-data lint format types clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(USE_STAMP) ## compress, export and validate the demo model; leaves everything in out/demo
	$(BIN)/lowrank-export runtime build
	$(BIN)/lowrank-export --model demo --format gguf --format onnx --retention 0.8 --out out/demo --force

test: $(DEVELOP_STAMP) ## every test, the slow ones too; not those for arm64
	$(BIN)/lowrank-export runtime build
	$(BIN)/python -m pytest $(PARALLEL) --junitxml=build/test-results.xml $(PYTEST_ARGS)

test-quick: $(DEVELOP_STAMP) ## the tests that take seconds
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not reproduce and not arm" $(PYTEST_ARGS)

reproduce: has-data $(DEVELOP_STAMP) ## published figures again, on the real text in LOWRANK_DATA (see CONTRIBUTING.md)
	$(BIN)/python -m pytest -m reproduce $(PYTEST_ARGS)

has-data:
	@test -d "$$LOWRANK_DATA" || { echo "make reproduce: LOWRANK_DATA must name the folder of evaluation text;" \
	  "CONTRIBUTING.md, \"Figures on real text\", says what it holds" >&2; exit 2; }

# -P: the current folder is not looked in, so what is tested is what was installed
test-wheel: ## the quick tests against the installed wheel: PYTHON=python3.12, CONSTRAINTS= for the newest of everything
	$(PYTHON) -m venv $(WHEEL_VENV)
	rm -rf build/wheel build/lib build/bdist.*
	$(WHEEL_PIP) wheel --quiet --no-deps --wheel-dir build/wheel .
	rm -rf build/lib build/bdist.*
	$(WHEEL_PIP) install $(CONSTRAINTS) "$$(echo build/wheel/*.whl)[test]"
	$(WHEEL_PIP) install --quiet --no-deps --force-reinstall build/wheel/*.whl
	$(WHEEL_VENV)/bin/python -P -m pytest $(PARALLEL) -m "not slow and not reproduce and not arm" $(PYTEST_ARGS)

# libraries choose their kernels as on a processor with SSE alone, which multiplies bfloat16; then with AVX2, without it
test-processors: $(DEVELOP_STAMP) ## the quick tests, twice, as older processors compute
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem LOWRANK_BFLOAT16=1 \
		$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not reproduce and not arm" $(PYTEST_ARGS)
	ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell LOWRANK_BFLOAT16=0 \
		$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not reproduce and not arm" $(PYTEST_ARGS)

test-arm: $(DEVELOP_STAMP) ## factored GGUF files on emulated arm64 processors; says what to install
	$(BIN)/python $(ARM64)/cross.py
	$(BIN)/lowrank-export runtime build
	$(BIN)/python -m pytest -m arm $(ARM64) --junitxml=build/test-results-arm.xml $(PYTEST_ARGS)

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
	$(INSTALL) -e .
	touch $@

$(DEVELOP_STAMP): $(PINS) | $(VENV)/bin/python
	$(INSTALL) -e '.[test,lint]'
	touch $@ $(USE_STAMP)

clean: ## remove what was built, tested and exported here
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also the virtual environment
	rm -rf $(VENV) *.egg-info
