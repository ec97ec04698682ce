PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

PEERS := flower nvflare pfl

.PHONY: help demo check format test bench bench-peers clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/installed  ## a federation of seven synthetic hospitals, in about a minute
	$(BIN)/raysim run

check: $(VENV)/installed  ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/installed  ## put the code in form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(VENV)/installed  ## all tests, two files at a time; those on real data skip where the data are not
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/installed  ## the benchmarks, on this machine, in about 30 minutes; RETINA=TABLE adds those on real data
	@missed=0; for words in "overhead.py $(if $(RETINA),--retina $(RETINA))" sites.py recovery.py aggregate.py contrast.py search.py; do \
	  echo "benchmarks/$$words"; $(BIN)/python benchmarks/$$words || missed=1; \
	done; exit $$missed

bench-peers: $(VENV)/installed $(PEERS:%=.peers/%/installed)  ## the same work on Flower, NVFlare and pfl-research
	$(BIN)/python benchmarks/peers.py

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
