# Each target, alone, sets up .venv (pinned), builds the native library and runs. A second run starts at once.
# Switches: PYTHON=python3.x, DEBUG=1, USE_CUDA=auto|0|1.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test test-all bench gpu-model lint sanitize clean

demo: $(VENV)/.built
	$(BIN)/python -m examples.demo

test: $(VENV)/.built
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# The same, with the oldest Triton, and every pair of types of its kernels compiled for every GPU (some minutes more).
test-all: export LRTRICKS_FULL = 1
test-all: test

bench: $(VENV)/.built
	$(BIN)/python -m bench

gpu-model: $(VENV)/.built
	$(BIN)/python -m bench.gpu_model

lint: $(VENV)/.installed
	$(BIN)/ruff check .

sanitize: $(VENV)/.built
	$(MAKE) -C tests/cpp sanitize
	LRTRICKS_SANITIZE=1 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(BIN)/python -m pytest -q tests/test_cuda_on_host.py

clean:
	rm -rf $(VENV) build dist *.egg-info lrtricks_fused/_native.so
	$(MAKE) -C tests/cpp clean

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python >= 3.10 is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@
