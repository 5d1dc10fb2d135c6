# Every target installs what it needs, so that it works on a fresh machine.
# PYTHON is the interpreter for the virtual environment; VENV is where it goes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache
export XDG_RUNTIME_DIR ?= $(CACHE)/xdg
export MESA_SHADER_CACHE_DIR ?= $(CACHE)/mesa
export PIP_DISABLE_PIP_VERSION_CHECK = 1
DOCTOR := $(BIN)/python -m webgpu_compile.runtime.doctor

.PHONY: demo test lint types test-fast test-slow bless gpu-driver web-deps clean

## Compile the demo model and generate from it.
demo: $(VENV)/.demo gpu-driver
	@echo
	@echo "models/demo/int4 is a decoder of 22 M parameters that completes Python code."
	@echo "First it is compiled to a folder of WGSL, a schedule and weights:"
	@echo
	$(BIN)/webgpu-compile models/demo/int4 -o out
	@echo
	@echo "Then the folder is replayed on the GPU, which keeps the sequence and picks the tokens itself."
	@echo "(Look inside with: $(BIN)/webgpu-inspect out)"
	@echo
	$(BIN)/webgpu-run out --prompt "def read_lines(path):" -n 64 --seed 1 --stats

## Lint, types and tests, as CI runs them.
test: lint types test-fast

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy compiler runtime models

test-fast: $(VENV)/.test gpu-driver web-deps
	$(BIN)/pytest -n 2 -m "not slow"

## The sweeps that CI leaves out (about half an hour on two cores).
test-slow: $(VENV)/.test gpu-driver
	$(BIN)/pytest -n 2 -m slow

## Rewrite golden files after a change that was meant.
bless: $(VENV)/.test gpu-driver web-deps
	$(BIN)/pytest -n 2 -m "not slow" --bless

## The page's tokenizer and chat template libraries (they go into the wheel), and what the browser's tests need.
web-deps: $(CACHE)/web/.installed

$(CACHE)/web/.installed: tests/web/package.json
	@sh .ci/install-web-tools
	@mkdir -p $(CACHE)/web runtime/web/vendor && cp tests/web/package.json $(CACHE)/web
	@npm install --prefix $(CACHE)/web --ignore-scripts --no-audit --no-fund --silent
	@cp $(CACHE)/web/node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs runtime/web/vendor/tokenizers.js
	@cp $(CACHE)/web/node_modules/@huggingface/tokenizers/LICENSE runtime/web/vendor/tokenizers.LICENSE.txt
	@cp $(CACHE)/web/node_modules/@huggingface/jinja/dist/index.js runtime/web/vendor/jinja.js
	@cp $(CACHE)/web/node_modules/@huggingface/jinja/LICENSE runtime/web/vendor/jinja.LICENSE.txt
	@touch $@

# A Vulkan driver: the machine's own, or Mesa's software one.
gpu-driver: $(VENV)/.demo
	@mkdir -p $(MESA_SHADER_CACHE_DIR) && { mkdir -p -m 700 $(XDG_RUNTIME_DIR) || true; }
	@$(DOCTOR) --quiet || { sh .ci/install-software-vulkan && $(DOCTOR); }

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than Python 3.11: give another with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) has no venv module: install it (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Installing webgpu-compile into $(VENV)"
	@$(BIN)/pip install --quiet -e '.[text]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@echo "Installing webgpu-compile and its test tools into $(VENV)"
	@$(BIN)/pip install --quiet -e '.[text,test]'
	@touch $@

clean:
	rm -rf .cache build out *.egg-info
