# Every target sets up what it needs in .venv; nothing but Python 3.11+ and make has to be there.
# pip's own configuration (PIP_INDEX_URL, pip.conf, ...) is respected.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help generate serve bench-latency tables results test check format format-check lint types \
        proto proto-check clean

VENV   ?= .venv
BIN    := $(VENV)/bin
PROMPT ?= a dog on a beach
OUT    ?= out.png
ARGS   ?=
RUN    ?= runs/tables
MODEL  ?= ciar-mini
SIZE   ?= mini-short
SCORER ?= mini
SCENES ?=
EXTRACTOR ?= efficientnet,inception
export PROMPT OUT

# The first Python on the path that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Stamps: what is installed. `dev` contains the others, so once it is there it serves for them.
stamp = $(firstword $(wildcard $(VENV)/.installed-dev) $(VENV)/.installed-$(1))
DEV   := $(VENV)/.installed-dev

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

generate: $(call stamp,edge)  ## Draw PROMPT="..." into OUT=file.png (ARGS: more options of ciar-edge)
	@$(BIN)/ciar-edge generate -o "$$OUT" $(ARGS) -- "$$PROMPT"

serve: $(call stamp,edge)  ## Run a cloud (ARGS: options of ciar-cloud serve)
	@$(BIN)/ciar-cloud serve $(ARGS)

bench-latency: $(call stamp,bench)  ## Measure latency: the cloud alone, blocking, optimistic, exact (ARGS: options)
	@$(BIN)/ciar-bench latency $(ARGS)

# The drafter of EAGLE and the variants of the draft are no part of a bundle, so they are trained:
# the drafter first, the variants, which only `losses` needs, last.
TABLE = $(BIN)/ciar-bench table --scenes "$(RUN)/scenes/held_out" --scorer "$(SCORER)" \
        --extractor "$(EXTRACTOR)" --model "$(RUN)/bundle" --out "$(RUN)/tables"
tables: $(call stamp,bench)  ## Every table of docs/tables.md into RUN/tables (hours; goes on where it stopped)
	@$(BIN)/ciar-bench fetch-features
	@$(BIN)/ciar-train adopt --frozen --size "$(SIZE)" --run "$(RUN)" "$(MODEL)"
	@$(BIN)/ciar-train scenes --size "$(SIZE)" --run "$(RUN)" $(SCENES)
	@$(BIN)/ciar-train draft --kind eagle --size "$(SIZE)" --run "$(RUN)"
	@set -e; for name in card main uncertainty discrete prefix threshold wavefront risk; do $(TABLE) $$name $(ARGS); done
	@test -f "$(RUN)/tables/routing.md" || $(BIN)/ciar-bench routing --model "$(RUN)/bundle" --size "$(SIZE)" --out "$(RUN)/tables/routing.md"
	@test -f "$(RUN)/tables/head-scale.md" || $(BIN)/ciar-bench head-scale --out "$(RUN)/tables/head-scale.md"
	@$(BIN)/ciar-train variant all --size "$(SIZE)" --run "$(RUN)"
	@$(TABLE) losses --variants "$(RUN)/variants" $(ARGS)

# What the documents show of it: the files that are there for ciar-mini, as far as RUN has them.
# Not `losses` and `head-scale`: those they show are of runs of other settings (docs/tables.md).
RESULTS := docs/results
SHOWN    = $(filter-out losses.%,$(notdir $(wildcard $(RESULTS)/ciar-mini/*)))
results:  ## Copy the tables and figures of RUN/tables that the documents show to docs/results
	@mkdir -p $(RESULTS)/$(notdir $(MODEL))
	@cd "$(RUN)/tables" && for name in $(SHOWN); do \
	  test ! -e $$name || cp $$name "$(CURDIR)/$(RESULTS)/$(notdir $(MODEL))" || exit 1; done
	@ls -s $(RESULTS)/$(notdir $(MODEL))

test: $(DEV)  ## Run the tests (ARGS: options of pytest)
	$(BIN)/python -m pytest $(ARGS)

check: format-check lint types proto-check  ## Formatting, lint, types, stubs up to date

format: $(DEV)  ## Reformat, and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(DEV)
	$(BIN)/ruff format --check .

lint: $(DEV)
	$(BIN)/ruff check .

types: $(DEV)
	$(BIN)/mypy
	$(BIN)/mypy tests

# Output root `shared`, so that the import written into the stubs (ciar.v1) is the true one.
STUBS  := shared
PROTOC := $(BIN)/python -m grpc_tools.protoc -I proto \
          --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
          --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc

proto: $(DEV)  ## Regenerate shared/ciar/v1 from proto/
	$(PROTOC) --python_out=$(STUBS) --grpc_python_out=$(STUBS) \
	  --mypy_out=quiet:$(STUBS) --mypy_grpc_out=quiet:$(STUBS) $(wildcard proto/ciar/v1/*.proto)

proto-check: $(DEV)
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	  $(MAKE) --no-print-directory -s proto STUBS=$$tmp && \
	  diff -r -x __pycache__ -x __init__.py $$tmp/ciar/v1 shared/ciar/v1 && \
	  echo "stubs are up to date"

clean:  ## Remove .venv, build output and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing ciar[$*] into $(VENV): once; torch is a large download"
	$(BIN)/python -m pip install -c constraints.txt -e '.[$*]'
	@touch $@
