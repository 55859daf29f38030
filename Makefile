# Targets other tools rely on: install, demo, test, test-full, test-gpu, test-eval, check.
# Variables: PYTHON (3.11 to 3.13), TORCH_INDEX (another index for torch), PYTEST_ARGS, USE_SYSTEM=1 (no .venv),
# CONSTRAINTS= (empty: the newest versions the ranges allow instead of the tested set).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)
endif

VENV := .venv
TORCH_INDEX ?=
PYTEST_ARGS ?=
PIP := $(VENV)/bin/python -m pip
CONSTRAINTS ?= constraints.txt
TESTED := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

ifeq ($(USE_SYSTEM),1)
RUN := $(PYTHON)
APP :=
DEV :=
else
RUN := $(VENV)/bin/python
APP := $(VENV)/app.stamp
DEV := $(VENV)/dev.stamp
endif

.PHONY: help install demo check audit format test test-full test-gpu test-eval eval-env test-transformers chromium docs results bench bench-gpu
help:
	@echo "make install    $(VENV) with everything the app and the tests need (TORCH_INDEX=URL for another torch index)"
	@echo "make demo       the app on http://127.0.0.1:7860 with the embedded model"
	@echo "make test       checks and all tests on seeded samples"
	@echo "make test-full  the full volumes;  make test-gpu  everything that needs CUDA"
	@echo "make test-eval  the plugin inside lmms-eval, in an environment of its own (make eval-env)"
	@echo "make test-transformers VERSION=5.23.0  what depends on transformers, on another release of it"
	@echo "make check      ruff, format, mypy, generated docs;  make format / make docs  rewrite them"
	@echo "make audit      known vulnerabilities of the tested set (needs the internet)"
	@echo "make results    accuracy, ablation and attention of the embedded models, into docs/results/ (minutes)"

install: $(DEV)

demo: $(APP)
	$(RUN) app.py

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found." \
		"Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "This Python has no venv module; installing python3-venv with apt." >&2; \
		rm -rf $(VENV); sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$sudo apt-get update -qq && $$sudo apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }

$(VENV)/app.stamp: requirements.txt pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing what the app needs into $(VENV); the first time, torch makes this take minutes."
	@$(PIP) install --quiet $(INDEX) $(TESTED) -r requirements.txt
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/app.stamp
	@echo "Installing what the tests need into $(VENV)."
	@$(PIP) install --quiet $(INDEX) $(TESTED) -r requirements.txt -r requirements-dev.txt
	@touch $@

# The browser tests drive a Chromium: the one found, else apt's, else the one playwright downloads.
chromium: $(DEV)
	@if ! command -v chromium chromium-browser google-chrome >/dev/null; then \
		sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		{ $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends chromium; } \
		|| $(RUN) -m playwright install --with-deps chromium \
		|| { echo "The browser tests need Chromium, and neither apt nor playwright could install it:" \
			"install chromium or google-chrome, then run make test again." >&2; exit 2; }; fi

check: $(DEV)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) docs/generate.py --check
	"$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/hadolint" --failure-threshold style Dockerfile

# A package of its own environment, so that it is not part of what it audits. --strict: a package that cannot be
# looked up fails the audit as a vulnerable one does.
audit: | $(VENV)/bin/python
	@[ -x $(VENV)/audit/bin/pip-audit ] || { $(VENV)/bin/python -m venv $(VENV)/audit \
		&& $(VENV)/audit/bin/python -m pip install --quiet "pip-audit>=2.10,<3"; }
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

format: $(DEV)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(DEV)
	$(RUN) docs/generate.py

results: $(DEV)
	$(RUN) -m lab.publish

# About three quarters of an hour on one core that nobody else uses; the tables follow from the stored JSON.
BENCH_CPU := bench prefill --config llava-onevision-0.5b --device cpu --dtype float32 --threads 1
BENCH_GPU := bench prefill --config llava-onevision-7b --device cuda --dtype bfloat16 --segments 1,8,32 --vision 5
result = --json docs/results/$(1).json

bench: $(DEV)
	$(RUN) -m sharp_demo $(BENCH_CPU) --tokens 1568 --vision 1 $(call result,bench-prefill-cpu-1568)
	$(RUN) -m sharp_demo $(BENCH_CPU) --tokens 6272 --rounds 3 $(call result,bench-prefill-cpu-6272)
	$(RUN) -m sharp_demo $(BENCH_CPU) --tokens 1568 --rounds 3 --retention 0.2 --methods all --vision 2 \
		$(call result,bench-prefill-cpu-methods)
	$(RUN) -m sharp_demo $(BENCH_CPU) --tokens 6272 --layers 2 --rounds 3 --methods sharp --retention 0.14 \
		--segments 1,8,32 --duplicates 0,0.5,0.95 $(call result,bench-prefill-cpu-content)
	$(RUN) -m sharp_demo $(BENCH_CPU) --threads 0 --tokens 1568 --rounds 3 --methods sharp \
		$(call result,bench-prefill-cpu-threads)
	$(RUN) -m sharp_demo $(BENCH_CPU) --layers 2 --scale 8,16,32,64,128 --rounds 3 --methods sharp --retention 0.14 \
		--svg docs/images/bench-scale-cpu.svg $(call result,bench-scale-cpu)
	$(RUN) -m sharp_demo $(BENCH_CPU) --tokens 1568 --rounds 1 --methods sharp --retention 0.2 \
		--profile docs/results/bench-prefill-cpu-profile.txt
	$(RUN) docs/generate.py

bench-gpu: $(DEV)
	$(RUN) -m sharp_demo $(BENCH_GPU) --attention auto,sdpa --duplicates 0,0.5,0.95 \
		--profile docs/results/bench-prefill-gpu-profile.txt $(call result,bench-prefill-gpu-6272)
	$(RUN) -m sharp_demo $(BENCH_GPU) --scale 8,16,32,64,128 --segments 8 --methods sharp --vision 0 \
		--svg docs/images/bench-scale-gpu.svg $(call result,bench-scale-gpu)
	$(RUN) docs/generate.py

# Tests of the page share servers and browsers, so they run one after another; the others in two processes.
# Where arguments choose tests of one kind only, the other kind finds none (exit code 5); that both do is an error.
PAGE := $(if $(PYTEST_ARGS),,tests/page tests/web)
NONE_IS_FINE := $(if $(PYTEST_ARGS),[ $$? = 5 ],false)
test: check chromium
	ran=; \
	$(RUN) -m pytest -q -m "not full and not gpu and not page" -n 2 $(PAGE:%=--ignore=%) $(PYTEST_ARGS) && ran=1 \
		|| $(NONE_IS_FINE); \
	$(RUN) -m pytest -q -m "not full and not gpu and page" $(PAGE) $(PYTEST_ARGS) && ran=1 || $(NONE_IS_FINE); \
	[ -n "$$ran" ] || { echo "No test fits $$(printf '%q ' $(PYTEST_ARGS))." >&2; exit 5; }
	$(if $(PYTEST_ARGS),,$(MAKE) test-transformers VERSION=$(OLDEST) \
		TRANSFORMERS_TESTS="tests/pruning/test_runtime_hooks.py tests/pruning/test_attach.py")

# Another transformers lies in a folder of its own and is found before the tested one, which stays as it is. Names
# that upstream gave up are errors. `make test` runs the hooks' tests on the oldest release that is supported.
OLDEST := 5.23.0
VERSION ?= $(OLDEST)
TRANSFORMERS_TESTS ?= tests/pruning tests/backbones tests/test_engine.py

$(VENV)/transformers-%/installed: | $(DEV)
	$(PIP) install --quiet --upgrade --no-deps --target $(@D) transformers==$*
	@touch $@

test-transformers: $(VENV)/transformers-$(VERSION)/installed
	PYTHONPATH=$(VENV)/transformers-$(VERSION) $(RUN) -m pytest -q -m "not full and not gpu and not page" -n 2 \
		-p no:cacheprovider -W error::FutureWarning $(TRANSFORMERS_TESTS) $(PYTEST_ARGS)

# lmms-eval lives apart: what it wants of av and torchvision is not what the app wants (requirements-eval.txt). Its own
# wrapper of LLaVA-OneVision, the control that our answers are held against, needs torchvision, which lies in a folder
# of its own: next to a CPU build of torch transformers would not load with it.
EVAL := .venv-eval
EVAL_PIP := $(EVAL)/bin/python -m pip install --quiet $(INDEX) -c constraints-eval.txt

eval-env: $(EVAL)/eval.stamp

$(EVAL)/eval.stamp: requirements.txt requirements-eval.txt constraints-eval.txt lab/plugin/pyproject.toml
	@echo "Installing lmms-eval into $(EVAL); the first time, torch makes this take minutes."
	@[ -x $(EVAL)/bin/python ] || $(PYTHON) -m venv $(EVAL)
	@$(EVAL_PIP) -r requirements.txt -r requirements-eval.txt
	@$(EVAL_PIP) --no-deps lmms-eval -e . -e lab/plugin
	@$(EVAL_PIP) --no-deps --upgrade --target $(EVAL)/control torchvision
	@touch $@

test-eval: $(DEV) eval-env
	$(RUN) -m pytest -q -m eval tests/eval $(PYTEST_ARGS)

test-full: check chromium eval-env
	$(RUN) -m pytest -q -m "not gpu" $(PYTEST_ARGS)

test-gpu: $(DEV)
	@$(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
		|| { echo "No CUDA device is visible to $(RUN): nothing to test here." >&2; exit 2; }
	$(RUN) -m pytest -q -m gpu tests/gpu -p no:cacheprovider $(PYTEST_ARGS)
