PYTHON ?= python3
PYTEST_ARGS ?=

# More workers than cores: half of the time, a test waits for a process that it started.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(2 * os.cpu_count())')
PARALLEL := --numprocesses $(WORKERS) --dist worksteal

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# A stamp names the interpreter and the place that .venv was made for, and is written last: the .venv
# of another Python, a moved one and one whose installation was interrupted are made anew.
KEY := $(shell $(PYTHON) -c 'import os, sys, zlib; \
	print(zlib.crc32(repr((os.getcwd(), sys.base_prefix, sys.version)).encode()))')
READY := .venv/.ready-$(KEY)
TRANSPORTS := .venv-transports/.ready-$(KEY)
BENCH := .venv/.bench-$(KEY)
RELEASE := .venv/.release-$(KEY)
OLDEST := .venv-oldest/.ready-$(KEY)

# What depends on xoscar, for its oldest supported version.
OLDEST_TESTS := tests/test_activation.py \
	$(addprefix tests/whole/test_,$(addsuffix .py,places mixed pools)) \
	$(addprefix tests/supervision/test_,$(addsuffix .py,recovery survival)) \
	$(addprefix tests/connection/test_,$(addsuffix .py,accepted caller loops preexisting))

# It runs as a user who may not write what coverage measures.
AS_NOBODY := tests/commands/test_top.py::test_a_foreign_users_process

.DEFAULT_GOAL := help
.PHONY: help demo style quick test test-transports bench compat coverage fuzz chaos churn mutants format release-check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 17

demo: $(READY) ## show idle connections being closed and reopened, and a killed sub-pool recovered
	@$(BIN)/xoscar-idle demo

style: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo

quick: style ## style, types, layers, and the tests that start no process: under a minute
	$(BIN)/python -m pytest $(PARALLEL) -m "not integration" $(PYTEST_ARGS)

test: style $(OLDEST) ## the whole proof, on all cores (PYTEST_ARGS="-k name")
	.venv-oldest/bin/python -m pytest -q $(PARALLEL) $(OLDEST_TESTS)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-transports: $(TRANSPORTS) ## run the tests of copies over UCX and NIXL, on Linux
	.venv-transports/bin/python -m pytest $(PYTEST_ARGS) tests/transports

bench: $(READY) $(BENCH) ## run all benchmarks, half an hour or so, and write benchmarks/results
	@$(BIN)/python -m benchmarks

compat: $(READY) ## run the tests on every Python that is there and every supported xoscar
	@$(BIN)/nox

coverage: $(READY) ## run the tests and list the lines and branches that they do not reach
	$(BIN)/coverage erase
	-$(BIN)/coverage run -m pytest $(PARALLEL) --deselect $(AS_NOBODY) $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

fuzz: $(READY) ## run the stateful tests for long (FUZZ=10000 sequences)
	XOSCAR_IDLE_FUZZ=$(or $(FUZZ),10000) $(BIN)/python -m pytest --timeout 3600 tests/connection/test_stateful.py

chaos: $(READY) ## kill, stop, add and remove pools under load (CHAOS=600 seconds)
	$(BIN)/python -m tests.whole.chaos $(or $(CHAOS),600) $(SEEDS)

churn: $(READY) ## let event loops come and go in many threads (CHURN=60 seconds, four times)
	$(BIN)/python -m tests.whole.churn $(or $(CHURN),60)

mutants: $(READY) ## put faults in and see whether the tests find them
	@$(BIN)/python -m tests.whole.mutants

format: $(READY) ## format the code and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

release-check: $(READY) $(RELEASE) ## build what is committed, install it as a user does, and try it
	$(BIN)/python -m pytest --verbose tests/whole/release.py

clean: ## remove everything that was made
	rm -rf .venv .venv-oldest .venv-transports .nox build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): setup.cfg setup.py pyproject.toml xoscar_idle.pth
	@echo "Making .venv"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@$(PIP) install --editable '.[test]'
	@touch $@

$(OLDEST): $(READY)
	@echo "Making .venv-oldest"
	@rm -rf .venv-oldest
	@$(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/python -m pip --disable-pip-version-check --quiet install \
		--editable '.[test]' xoscar==0.11.0
	@touch $@

$(BENCH): benchmarks/requirements.txt $(READY)
	@echo "Adding the peers and the plots of the benchmarks to .venv"
	@$(PIP) install --requirement benchmarks/requirements.txt
	@touch $@

# Half a gigabyte, torch above all, that the other tests do without.
$(TRANSPORTS): requirements-transports.txt $(READY)
	@echo "Making .venv-transports"
	@rm -rf .venv-transports
	@$(PYTHON) -m venv .venv-transports
	@.venv-transports/bin/python -m pip --disable-pip-version-check --quiet install \
		--editable '.[test]' --requirement requirements-transports.txt
	@touch $@

$(RELEASE): $(READY)
	@$(PIP) install twine
	@touch $@
