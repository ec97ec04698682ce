PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

PEERS := flower nvflare pfl
# Every process of a test imports raysim; without compiled bytecode this takes seconds longer.
export PYTHONDONTWRITEBYTECODE :=
# Tests that share a Ray or a cluster stay on one of the two workers.
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations=30

TEXTS := raysim algorithms search_spaces cluster tests docs examples studies benchmarks $(wildcard *.md) Makefile

.PHONY: help demo check format docs test test-all test-smoke mutations fuzz audit bench bench-peers soak clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/installed  ## a federation of seven synthetic hospitals, in about a minute
	$(BIN)/raysim run

check: $(VENV)/installed  ## lint, format, spelling, private terms, import contracts, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	! grep -rnIwiE -f tests/forbidden_terms.txt --exclude=forbidden_terms.txt --exclude-dir=__pycache__ $(TEXTS)
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/installed  ## the documentation as a site, with an API reference, in build/site; links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

format: $(VENV)/installed  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(VENV)/installed  ## the tests without the slow ones, in about 8 minutes; those on real data skip where the data are not
	$(PYTEST) -m "not slow"

test-all: $(VENV)/installed  ## all tests, in about 40 minutes
	$(PYTEST)

test-smoke: $(VENV)/installed  ## the few slow tests that .ci/run adds to make test
	$(PYTEST) -m smoke

mutations: $(VENV)/installed  ## small defects, one at a time; make test must fail for each, in about 20 minutes
	$(BIN)/python tests/mutation_check.py

fuzz: $(VENV)/installed  ## damaged files for every reader of untrusted files, for MINUTES (60)
	$(BIN)/python tests/fuzz.py --minutes $(or $(MINUTES),60)

audit: $(VENV)/installed  ## the pinned versions are compared with the vulnerabilities that PyPI lists; part of test-all
	$(BIN)/pytest -rs tests/e2e/test_audit.py

bench: $(VENV)/installed  ## the benchmarks, on this machine, in about 30 minutes; RETINA=TABLE adds those on real data
	@missed=0; for script in "overhead.py $(if $(RETINA),--retina $(RETINA))" sites.py recovery.py aggregate.py contrast.py selector.py patches.py search.py startup.py; do \
	  echo "benchmarks/$$script"; $(BIN)/python benchmarks/$$script || missed=1; \
	done; exit $$missed

bench-peers: $(VENV)/installed $(PEERS:%=.peers/%/installed)  ## the same work on Flower, NVFlare and pfl-research
	$(BIN)/python benchmarks/peers.py

soak: $(VENV)/installed  ## MINUTES (60) of rounds with a killed client actor every minute, then as many without kills; digests must be equal
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),60)

clean:  ## remove the virtual environment and what tools left
	rm -rf $(VENV) .peers .mypy_cache .ruff_cache .pytest_cache

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# Of constraints.txt only what trains: the peers pin other versions of the rest (Flower its Ray, protobuf and more).
.peers/core.txt: constraints.txt
	mkdir -p .peers
	grep -E '^(torch|monai|numpy)==' $< > $@

.peers/%/installed: benchmarks/peers/%.txt .peers/core.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/pip install --quiet --disable-pip-version-check --constraint .peers/core.txt --requirement $<
	touch $@
