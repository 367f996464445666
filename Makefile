# Each target makes the environment that it needs, once, inside this folder.

# The first Python 3.11, 3.12 or 3.13 that runs; `make PYTHON=/path/to/python ...` chooses another.
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c "$(IN_RANGE)" 2> /dev/null && echo $$python && break; done)
BASE_PYTHON = $(or $(PYTHON),python3)
FOUND = $(shell $(BASE_PYTHON) --version 2> /dev/null || echo none)

PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# Two processes, each with whole files, so that what a file trains once is trained once.
WORKERS := -n 2 --dist loadfile
# With two processes on two cores a thread each is the fastest.
test test-long test-release test-nightly: export TF_NUM_INTRAOP_THREADS = 1
BACKENDS := "backends and not tensorflow_first and not long and not release"
NIGHTLY := build/keras-nightly
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Whatever the shell says; only .venv-backends has other backends.
export KERAS_BACKEND = tensorflow

# XLA compiles each program for one or two calls: its own passes as ever, LLVM's in a hurry.
test test-long test-release test-backends test-nightly: export XLA_FLAGS = --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true
# JAX compiles each operation for each shape: what one test compiled, another one reads.
test-backends test-release: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/build/jax
test-backends test-release: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test-backends test-release: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-release lint test-serving test-backends test-nightly wheel-check clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed  ## train a small date translator and show its attention
	@.venv/bin/python -m keras_attention.training.demo

test: .venv/.installed  ## run the tests
	.venv/bin/python -m pytest $(WORKERS)

test-long: .venv/.installed  ## run longer tests: fresh processes, killed and resumed trainings, CTranslate2, Keras's own
	.venv/bin/python -m pytest $(WORKERS) -m "long and not release"

test-release: .venv/.installed .venv-backends/.installed  ## run before a release what the others leave out: the same of every kind and configuration
	.venv/bin/python -m pytest $(WORKERS) -m release
	KERAS_BACKEND=jax .venv-backends/bin/python -m pytest $(WORKERS) -m backends
	KERAS_BACKEND=torch .venv-backends/bin/python -m pytest $(WORKERS) -m backends

lint: .venv/.installed  ## check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

test-serving: .venv/.installed .venv-serving/.installed  ## ask the exported model under TensorFlow 2.20
	SERVING_PYTHON="$(CURDIR)/.venv-serving/bin/python" .venv/bin/python -m pytest -m serving

test-backends: .venv-backends/.installed  ## run the layers' and models' tests on JAX and PyTorch
	KERAS_BACKEND=jax .venv-backends/bin/python -m pytest $(WORKERS) -m $(BACKENDS)
	KERAS_BACKEND=torch .venv-backends/bin/python -m pytest $(WORKERS) -m $(BACKENDS)

test-nightly: .venv/.installed  ## run the tests of masks under the Keras to come, 3.16
	rm -rf $(NIGHTLY)
	.venv/bin/python $(PIP_INSTALL) --no-deps --target $(NIGHTLY) keras-nightly==3.16.0.dev2026102704 \
	&& PYTHONPATH=$(NIGHTLY) .venv/bin/python -m pytest $(WORKERS) -k "(mask or padding or leak) and not train" \
	|| { test ! -d $(NIGHTLY) && echo "keras-nightly cannot be had: its tests were not run."; }

wheel-check: .venv/.installed  ## build the wheel, install it elsewhere and import from it
	.venv/bin/python benchmarks/check_wheel.py

clean:  ## remove the environments, builds and caches
	rm -rf .venv .venv-backends .venv-serving build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call environment,WHAT TO INSTALL): an environment whose .unfinished becomes .installed at the very end, so that
# one whose installation was interrupted is made anew.
define environment
@$(BASE_PYTHON) -c "$(IN_RANGE)" 2> /dev/null || { echo "keras-attention-zoo needs Python 3.11, 3.12 or \
3.13; found $(FOUND); set PYTHON=/path/to/python." >&2; exit 1; }
@$(BASE_PYTHON) -c "import ensurepip, venv" 2> /dev/null || { echo "$(BASE_PYTHON) cannot make virtual environments: install its \
venv module (Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
@echo "Installing into $(@D) (minutes, the first time)"
@if [ -e $(@D)/.unfinished ]; then rm -rf $(@D); fi
@mkdir -p $(@D) && rm -f $@ && touch $(@D)/.unfinished
@$(BASE_PYTHON) -m venv $(@D)
@$(@D)/bin/python $(PIP_INSTALL) $(1)
@touch $(@D)/.unfinished && mv $(@D)/.unfinished $@
endef

.venv/.installed: setup.cfg pyproject.toml
	$(call environment,-e ".[train$(comma)test]")

.venv-backends/.installed: setup.cfg pyproject.toml Makefile
	$(call environment,-e ".[train$(comma)test$(comma)backends]" torch==2.13.0)

# What TensorFlow Serving links today. On Python 3.13 tensorflow-text 2.20 begins with 2.20.1.
.venv-serving/.installed: Makefile
	$(call environment,tensorflow-cpu==2.20.0 "tensorflow-text==2.20.0; python_version < '3.13'" \
	"tensorflow-text==2.20.1; python_version >= '3.13'")

comma := ,
