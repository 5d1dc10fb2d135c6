# Every target installs what it needs, so that it works on a fresh machine.
# PYTHON is the interpreter for the virtual environment; VENV is where it goes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export XDG_RUNTIME_DIR ?= /tmp
export MESA_SHADER_CACHE_DIR ?= $(CURDIR)/.cache/mesa

.PHONY: demo test lint types test-fast test-slow bless gpu-driver clean

## Compile the demo model and generate from it.
demo: $(VENV)/.demo gpu-driver
	@$(BIN)/python -m webgpu_compile.models --preset tiny-llama -o .cache/demo-model
	@$(BIN)/webgpu-compile .cache/demo-model -o out
	@$(BIN)/webgpu-run out --prompt "The quick brown fox" -n 32 --stats

## Lint, types and tests, as CI runs them.
test: lint types test-fast

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy compiler runtime models

test-fast: $(VENV)/.test gpu-driver
	$(BIN)/pytest -n 2 -m "not slow"

## The sweeps that CI leaves out (about half an hour on two cores).
test-slow: $(VENV)/.test gpu-driver
	$(BIN)/pytest -n 2 -m slow

## Rewrite golden files after a change that was meant.
bless: $(VENV)/.test gpu-driver
	$(BIN)/pytest -n 2 -m "not slow" --bless

# A Vulkan driver: the machine's own, or Mesa's software one.
gpu-driver: $(VENV)/.demo
	@$(BIN)/python -m webgpu_compile.runtime.device --quiet || sh .ci/install-software-vulkan

$(VENV)/.demo: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[text]'
	@touch $@

$(VENV)/.test: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf .cache build out *.egg-info
