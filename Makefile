# Everything a contributor runs. `make help` lists it; scripts of any length are in .ci/.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PROCESSES ?= 4 # most tests wait for something most of the time
PYTEST := $(VENV)/bin/python -m pytest -n $(PROCESSES)
SYNCED := $(VENV)/.synced
FUZZ_SECONDS ?= 60
SEEDS ?= 2000
FIRST ?= 0

.DEFAULT_GOAL := help
.PHONY: help env brokers browser demo test test-teeth test-fast test-oldest test-all lint format types contracts docs wheel fuzz simulate bench bench-quick bench-faults bench-page bench-peers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(SYNCED) ## make .venv from uv.lock

$(SYNCED): pyproject.toml uv.lock
	uv=$$(.ci/uv.sh $(PYTHON)) && "$$uv" sync --locked
	touch $@

brokers: env ## find, or install, Redis, NATS and RabbitMQ
	.ci/brokers.sh

browser: ## find, or install, Chromium and the JavaScript client
	.ci/browser.sh

demo: env ## start the demo
	$(VENV)/bin/roomcast demo

test: env brokers browser bench-peers ## the suite, against real brokers; a missing one fails it
	ROOMCAST_TEST_REQUIRE=1 $(PYTEST) -m "not teeth"

test-teeth: env ## plant bugs, each of which the suite must catch
	$(PYTEST) -m teeth

test-fast: env ## no faults, no browser; a missing broker is skipped, and named
	$(PYTEST) -m "not fault and not browser and not teeth"

test-oldest: env brokers browser ## the suite on the oldest Python and dependencies we support
	.ci/test-with.sh oldest

test-all: env brokers browser ## the suite on every Python we support that is installed
	.ci/test-with.sh all

lint: env ## ruff: rules and format
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

format: env ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

types: env ## mypy --strict and pyright strict
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright

contracts: env ## which module may import which
	PYTHONPATH=typings $(VENV)/bin/lint-imports

docs: env ## build the documentation into build/docs; a warning fails it
	$(VENV)/bin/mkdocs build --strict

wheel: env ## build the wheel and import it from an empty environment
	.ci/wheel.sh

fuzz: env ## feed the decoder random bytes for FUZZ_SECONDS
	uv=$$(.ci/uv.sh $(PYTHON)) && "$$uv" run --isolated --no-project --python $(VENV)/bin/python --with atheris --with msgpack --with-editable . \
		python -m tests.fuzz.fuzz_decode build/fuzz -max_total_time=$(FUZZ_SECONDS)

simulate: env ## run SEEDS simulated clusters from seed FIRST on, some minutes; a failing seed is told with what replays it
	$(VENV)/bin/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST) --processes $(PROCESSES)

bench: env bench-peers ## measure roomcast beside its peers, half an hour; BENCH="--resume" goes on
	$(VENV)/bin/python -m bench run $(BENCH)
	@$(VENV)/bin/python -m bench goals || true

bench-quick: env ## the short form: fails unless roomcast is far ahead of python-socketio
	$(VENV)/bin/python -m bench run --quick
	$(VENV)/bin/python -m bench check

bench-faults: env brokers bench-peers ## break brokers, links and nodes under a stream of events, and count, 10 minutes
	$(VENV)/bin/python -m bench run faults --rounds 1 $(BENCH)

bench-page: env ## write the pages of performance and of faults from the results of `make bench` and `make bench-faults`
	uv=$$(.ci/uv.sh $(PYTHON)) && "$$uv" sync --locked --group bench
	$(VENV)/bin/python -m bench page

bench-peers: ## install Node's socket.io and its adapters, where there is npm
	@if ! command -v npm >/dev/null; then echo "No npm here: Node's contestants are skipped, by name" >&2; \
	elif [[ bench/node/node_modules/.package-lock.json -nt bench/node/package-lock.json ]]; then :; \
	else cd bench/node && npm ci --no-audit --no-fund --loglevel=error; fi

clean: ## remove what these targets made
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache tests/js/node_modules bench/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
