# `make demo` and `make test` install what is missing first. Everything is kept inside .venv: nothing depends on the
# state of the home directory. Only PostgreSQL's server and Chromium, which some tests start, are installed on the
# machine, by `make setup` and the targets that need it, and where apt and the rights for it are there.
#
# PYTHON           a Python 3.11 (the pins in lock/ are for it)
# TARGET           cpu or gpu: which of lock/cpu.txt and lock/gpu.txt is installed
# TORCH_INDEX_URL  a further package index to look for torch in, such as PyTorch's own one of CPU builds

PYTHON ?= python3.11
TARGET ?= cpu
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(TARGET)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))
PYTEST := $(BIN)/python -m pytest

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test test-long chaos lint format format-check types pictures reference docs clean
.DELETE_ON_ERROR:

setup: $(INSTALLED)
	@sh tests/setup-programs.sh

$(INSTALLED): lock/$(TARGET).txt lock/dev.txt pyproject.toml
	@command -v g++ >/dev/null || { echo "setup: g++ is missing (Debian: apt-get install -y g++)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import os, sys, sysconfig; os.path.exists(sysconfig.get_path("include") + "/Python.h") or sys.exit("setup: the headers of Python are missing (Debian: apt-get install -y python3-dev)")'
	@$(BIN)/python -c 'import sys; sys.exit("setup: $(VENV) must be Python 3.11; remove it, then: make setup PYTHON=python3.11" if sys.version_info[:2] != (3, 11) else 0)'
	@rm -f $(VENV)/.installed-*
	@# --no-deps: see the head of lock/cpu.txt. torch goes first and alone, because its CPU build is not offered by
	@# every index; the plain build then needs its CUDA libraries, which only dependency resolution brings.
	@torch=$$(grep '^torch==' lock/$(TARGET).txt) && plain=$${torch%+cpu} && \
	if $(PIP) install --no-deps $(INDEX) "$$torch"; then :; \
	elif [ "$$plain" = "$$torch" ]; then exit 1; \
	else \
	  echo "setup: $$torch is not offered here; installing the larger $$plain" \
	       "(set TORCH_INDEX_URL to PyTorch's index of CPU builds to avoid it)"; \
	  $(PIP) install $(INDEX) "$$plain"; \
	fi
	@grep -v '^torch==' lock/$(TARGET).txt > $(VENV)/rest.txt
	$(PIP) install --no-deps -r $(VENV)/rest.txt -r lock/dev.txt
	$(PIP) install --no-deps --no-build-isolation --quiet --editable .
ifeq ($(TARGET),cpu)
	@echo "setup: compiling DeepSpeed's extension (about a minute, once)"
	@$(BIN)/python -c 'from spftsql.doctor import build_extensions; build_extensions()' > $(VENV)/extensions.log 2>&1 \
	  || { cat $(VENV)/extensions.log; exit 1; }
endif
	@$(BIN)/python -c 'import torch; print("setup: done with torch", torch.__version__, "(" + ("CUDA " + torch.version.cuda if torch.version.cuda else "CPU") + " build)")'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/spftsql demo

test: setup
	$(PYTEST) -m "not long and not chaos"

test-long: setup
	$(PYTEST) -m "not chaos"

chaos: setup
	$(PYTEST) -m chaos

lint: setup
	$(BIN)/ruff check .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: setup
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

pictures: setup
	SPFTSQL_PICTURES=$(CURDIR)/docs/images $(PYTEST) tests/integration/test_web_page.py -k pictures

reference: setup
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/plots.py

docs: setup
	@$(PIP) install --quiet --no-deps -r lock/docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist .cache .ruff_cache
