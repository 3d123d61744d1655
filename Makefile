# Each target, alone, sets up .venv (pinned), builds the native library and runs. A second run starts at once.
# Switches, at any run: PYTHON=python3.x, DEBUG=1, USE_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, CXX, CUDA_HOME.
PYTHON ?= python3
VENV := .venv
FRAMEWORKS := .venv-frameworks
BIN := $(VENV)/bin
SOURCES := setup.py build_backend.py pyproject.toml $(shell find csrc -type f)
CPP_FILES = $(shell find csrc tests bench -regex '.*\.\(h\|cuh\|cpp\|cu\)')
# Without its bytecode torch takes twice as long to import, in each of many processes; pip leaves it to the first of them.
unexport PYTHONDONTWRITEBYTECODE
# What the library is built by: when one of these changes, it is built again.
SWITCHES := DEBUG=$(DEBUG) USE_CUDA=$(USE_CUDA) TORCH_CUDA_ARCH_LIST=$(TORCH_CUDA_ARCH_LIST) CXX=$(CXX) \
  CUDA_HOME=$(CUDA_HOME)

# A PYTHON that is named, and is another than .venv's: .venv is made anew. Not named, .venv's stays.
WHICH := -c 'import sys; print(*sys.version_info[:2], sys.base_prefix)'
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) $(WHICH)),$(shell $(BIN)/python $(WHICH) 2>/dev/null))
$(VENV)/.installed: force
CLEAR := --clear
endif
endif

.PHONY: demo test test-all test-ptx test-frameworks test-aarch64 bench bench-pytest bench-check bench-kernels gpu-model bandwidth-model lint lint-python lint-format lint-cpp lint-types format sanitize sanitize-cpp sanitize-cuda clean force

demo: $(VENV)/.built
	$(BIN)/python -m examples.demo

# Files in their order: of those with few tests, which xdist would have last, some take longest.
test: $(VENV)/.built
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Training by Lightning, accelerate, transformers, timm and fastai, in an environment of its own, with the same library.
test-frameworks: $(VENV)/.built $(FRAMEWORKS)/.installed
	PYTHONPATH=. $(FRAMEWORKS)/bin/python -m pytest -q tests/frameworks

# The same, with the oldest Triton, and every pair of types of its kernels compiled for every GPU (some minutes more).
test-all: export LRTRICKS_FULL = 1
test-all: test

# The PTX out of the library (TORCH_CUDA_ARCH_LIST="9.0+PTX", or the default) and of Triton, executed on the CPU. Some
# variants; with LRTRICKS_FULL=1 all variants, types, tricks and targets, which takes long. ARGS="-k sm_90": fewer.
test-ptx: export LRTRICKS_PTX = 1
test-ptx: $(VENV)/.built
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests/ptx $(ARGS)

bench: $(VENV)/.built
	$(BIN)/python -m bench

# Fails where a ratio is worse than the one that bench/ratios.json has of the same processor. Some minutes.
bench-check: $(VENV)/.built
	$(BIN)/python -m bench --check

# The same workloads by pytest-benchmark; ARGS="--benchmark-json=steps.json -k Adam".
bench-pytest: $(VENV)/.built
	$(BIN)/python -m pytest -q -p no:xdist bench/test_steps.py $(ARGS)

# The kernels alone, without torch. BENCH="--only Adam --rounds 5", WIDTH=256: vectors of 256 bits with AVX-512, ROWS=4:
# so many rows of 64 elements are stepped between draws.
bench-kernels:
	$(MAKE) -C tests/cpp bench

gpu-model: $(VENV)/.built
	$(BIN)/python -m bench.gpu_model

# Shares of the attainable bandwidth, by a model. ARGS="--boards B200 --dtypes bf16 --backends cuda triton".
bandwidth-model: $(VENV)/.built
	$(BIN)/python -m bench.bandwidth_model $(ARGS)

# The hooks of .pre-commit-config.yaml are these four.
lint: lint-python lint-format lint-cpp lint-types

lint-python: $(VENV)/.installed
	$(BIN)/ruff check .

lint-format: $(VENV)/.installed
	$(BIN)/ruff format --check .

lint-cpp: $(VENV)/.installed
	@echo clang-format --dry-run -Werror
	@$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

lint-types: $(VENV)/.installed
	$(BIN)/mypy

# What of it can be put right by itself.
format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP_FILES)

# pytest with the CUDA text on the host under sanitizers.
SANITIZED = LRTRICKS_SANITIZE=1 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 $(BIN)/python -m pytest -q -n 2
# JOBS=n: so many compilers at a time, by default one per core.
sanitize: sanitize-cpp sanitize-cuda

sanitize-cpp:  # needs no .venv
	$(MAKE) -C tests/cpp sanitize

sanitize-cuda: $(VENV)/.built
	$(SANITIZED) tests/kernels/test_cuda_on_host.py tests/kernels/test_cuda_alignments.py \
	  tests/kernels/test_storage_in_one_pass.py
	$(SANITIZED) -k cuda tests/kernels/test_channels_last.py tests/kernels/test_index_maps.py

# The C++ tests on an emulated ARM processor: Debian's qemu-user-static and g++-aarch64-linux-gnu, or another CXX.
AARCH64_CXX ?= aarch64-linux-gnu-g++
test-aarch64:
	$(MAKE) -C tests/cpp release CXX=$(AARCH64_CXX) RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"

clean:
	rm -rf $(VENV) $(FRAMEWORKS) build dist *.egg-info lrtricks_fused/_native.so
	$(MAKE) -C tests/cpp clean

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python >= 3.10 is needed"'
	$(PYTHON) -m venv $(CLEAR) $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -r requirements.txt
	touch $@

$(FRAMEWORKS)/.installed: requirements-frameworks.txt
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-frameworks.txt
	touch $@

# Written only when it changes.
$(VENV)/.switches: force | $(VENV)/.installed
	@echo '$(SWITCHES)' | cmp -s - $@ || echo '$(SWITCHES)' > $@

$(VENV)/.built: $(VENV)/.installed $(VENV)/.switches $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

# The documentation's site, into build/site; warnings are errors. Needs Python >= 3.11, and no network.
.PHONY: docs
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict
