# Two commands matter: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := tests/pipeline/exchange/test_peers.py tests/pipeline/exchange/test_label_studio_server.py
# Two tests at a time, on a core each.
ALONE = OMP_NUM_THREADS=1
# In memory, where there is room: a disk takes its time to say that it has what was written, and Dagster asks it for
# every event of a run.
ROOMY := $(shell [ "$$(df --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 8000000 ] 2>/dev/null && echo TMPDIR=/dev/shm)
export CVP_HOME ?= $(CURDIR)/.cvp
# Container images often set it; then each process compiles all that it imports anew: `cvp run` and Ray's start in
# twice the time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(READY)  ## set up, then run the whole pipeline on real photos, to a verdict
	$(BIN)/cvp demo trees

ui: $(READY)  ## the Dagster web UI on http://127.0.0.1:3000, with sensors and schedules
	DAGSTER_HOME=$$($(BIN)/python -m assets.instance) $(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p $${PORT:-3000}

test: $(READY) weights  ## set up, then run the default tests
	$(ALONE) $(ROOMY) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not ray and not network and not browser and not peers" tests

test-slow: $(READY) weights  ## the marked tests that need time or a loopback server
	$(ALONE) $(ROOMY) $(BIN)/python -m pytest -n 2 --dist loadfile --timeout-method thread -m "(slow or network) and not ray and not browser and not peers" $(PEERS:%=--ignore=%) tests

test-ray: $(READY) weights  ## the marked tests that start Ray
	$(BIN)/python -m pytest --timeout-method thread -m "ray and not browser and not peers" tests

test-peers: $(READY)  ## other tools read what we write: each is installed in an environment of its own
	$(BIN)/python -m pytest -m network $(PEERS)

test-references: peers  ## compare with the reference implementations of the dependency group `peers`
	$(BIN)/python -m pytest -m peers tests

test-browser: $(READY) weights  ## the tests that need Chromium
	$(BIN)/python -m pytest -m browser tests

weights: $(READY)  ## fetch the compact weights and the small samples, checking their hashes
	@$(BIN)/cvp models pull compact --quiet
	@$(BIN)/cvp samples pull trees textile --quiet

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pipeline assets

bench: peers  ## every benchmark, us and a peer in turn, into docs/benchmarks.md (ONLY="NAME ..." for some)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/table.py $(ONLY)

peers: $(READY)
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet --python $(BIN)/python --group peers

clean:  ## remove what was made (weights and samples too), but not the environment
	rm -rf $(CVP_HOME)

# uv is far quicker than pip; it is told to look where pip is configured to find wheels.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet --python $(BIN)/python -e . --group dev
	@touch $@

.PHONY: help demo ui peers test test-slow test-ray test-peers test-references test-browser weights lint bench clean
