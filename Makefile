# make demo   one command from a clone to a scored model: tiny models, a drawn corpus, training, inference, scores
# make test   lint, types and all tests
#
# PIP_ARGS, EXTRAS, CONSTRAINTS, PYTHON and VENV can be overridden:
#   make demo PYTHON=python3.12          another interpreter (3.11 or newer)
#   make demo CONSTRAINTS=constraints/vllm.txt     CUDA build of torch instead of the CPU one
# An environment that was made with other CONSTRAINTS or EXTRAS is installed into again where these are given.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/ci.txt
PIP_ARGS ?=
EXTRAS ?= dev,page
BIN = $(VENV)/bin

# Two torch threads that spin while anything else uses a core slow a step many times over.
export OMP_WAIT_POLICY = PASSIVE
export TOKENIZERS_PARALLELISM = false
export HF_HUB_OFFLINE = 1

.PHONY: demo test lint format env clean check-python help
.DEFAULT_GOAL := help

help:
	@echo "make demo    from a fresh clone to a scored model and output/demo/report.html (CPU, no download of weights)"
	@echo "make test    lint, types and all tests"
	@echo "make env     only the environment, .venv"
	@echo "make lint    ruff and mypy;  make format  ruff format;  make clean  remove .venv and the demo's files"

demo: env
	@$(BIN)/python -m examples.demo

# A third process works while the tests of two wait for commands that they have started.
test: lint
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: env
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format .

env: $(VENV)/.installed
	@echo "$(VENV): $$($(BIN)/python --version), $$(cat $(VENV)/.installed)"

ifneq ($(filter command environment,$(origin CONSTRAINTS) $(origin EXTRAS)),)
ifneq ($(shell cat $(VENV)/.installed 2>/dev/null),$(CONSTRAINTS) with $(EXTRAS))
.PHONY: $(VENV)/.installed
endif
endif

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) could not make a virtual environment; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }
	@echo "installing into $(VENV) (about two minutes, 2 GB)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[$(EXTRAS)]' || { \
	  echo "error: the installation failed (see above); run make again to go on" >&2; exit 1; }
	@echo "$(CONSTRAINTS) with $(EXTRAS)" > $@

check-python:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer (Debian: sudo apt-get install python3 python3-venv), or say PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c '' || { echo "error: $(PYTHON) does not run (see above); give another, PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test "$(origin PYTHON)" != "command line" || test ! -x $(BIN)/python || \
	  test "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" = "$$($(BIN)/python -c 'import sys; print(sys.version_info[:2])')" || { \
	  echo "error: $(VENV) was made with $$($(BIN)/python --version); remove it, or add VENV=.venv-other for another one" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed (PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@test -d $(VENV) || $(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free / 1e9; free > 4 or sys.exit(f"error: {free:.1f} GB of disk space are free here; the environment and the demo need 4")'

clean:
	rm -rf $(VENV) output/demo models/demo-* .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
