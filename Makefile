# The whole workflow; every target sets itself up. A machine needs make and Python 3.11 to 3.14.
#
#   make demo    everything embedded, a simulated fleet, and what was found in its record
#   make test    all tests: first those without I/O, in seconds, then the simulations, then those
#                against a real Kafka and a real ClickHouse (ARGS="-k word" for some)
#   make check   lint, format, types, and the rules of tests/test_tidy.py
#   make bench   throughput on this machine          make soak    the long tests
#   make wheel   a wheel into dist/ with the hot path compiled (needs a C compiler)
#   make test-compiled   the tests without I/O, and the simulations, on what that wheel holds
#   make bench-peers   beside other stream processors; delays, growth, recovery: docs/benchmarks.md
#   make lock    renew the locks (needs the network) make clean   remove what make made

VENV := .venv
BIN := $(VENV)/bin
ROOMS := schemas producers stream_processors sinks deploy
PYTHONS := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11
RIGHT_PYTHON := import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))

# Compiling a gigabyte of libraries to byte code takes longer than the few that are imported need.
# These are compiled at their first import, and never again if Python may write down the result.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
COMPILE := .venv-lock/bin/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 \
	--extra local --extra server --extra registry --extra watch \
	--generate-hashes --no-emit-index-url --no-annotate --no-header

# The hot path compiled, as the wheel ships it: what is measured is what runs in production.
COMPILED := build/compiled
WHEEL := TRAILWEAVE_COMPILE=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check \
	--no-deps --no-build-isolation

.PHONY: demo test test-compiled check bench bench-peers soak wheel lock clean

demo: $(VENV)/.runtime
	@$(BIN)/trailweave demo $(ARGS)

# All parts, even if one fails.
test: $(VENV)/.dev
ifdef ARGS
	@$(BIN)/python -m pytest tests $(ARGS)
else
	@status=0; \
	$(BIN)/python -m pytest tests/unit -m "not soak and not simulation" --quiet \
		--numprocesses=2 || status=$$?; \
	$(BIN)/python -m pytest tests/unit -m simulation --quiet --numprocesses=2 || status=$$?; \
	$(BIN)/python -m pytest tests --ignore=tests/unit --quiet --durations=10 \
		--numprocesses=2 --dist=loadfile || status=$$?; \
	exit $$status
endif

check: $(VENV)/.dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || \
		{ echo "couldn't accept the format: run $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary $(ROOMS) tests
	@$(BIN)/python -m pytest --quiet tests/test_tidy.py

bench: $(VENV)/.dev $(COMPILED)/.ready
	@PYTHONPATH=$(COMPILED) $(BIN)/python -m tests.benchmarks.run $(ARGS)

bench-peers: $(VENV)/.dev $(COMPILED)/.ready .venv-peers/.ready
	@PYTHONPATH=$(COMPILED) $(BIN)/python -m tests.benchmarks.slow $(ARGS)

test-compiled: $(VENV)/.dev $(COMPILED)/.ready
	@PYTHONPATH=$(COMPILED) $(BIN)/python -m pytest tests/unit -m "not soak" --quiet --numprocesses=2

wheel: $(VENV)/.dev
	@$(WHEEL) --wheel-dir dist .

soak: $(VENV)/.dev
	@$(BIN)/python -m pytest tests -m "soak or hypothesis or simulation" \
		--hypothesis-profile=thorough $(ARGS)

# Versions and hashes only, no host names: where packages come from is every machine's own setting.
lock: | $(BIN)/python
	@$(BIN)/python -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@$(COMPILE) --upgrade --group build -o requirements.lock
	@$(COMPILE) --upgrade --group dev --constraint requirements.lock -o requirements-dev.lock

clean:
	@rm -rf $(VENV) .venv-lock .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	@find $(ROOMS) tests -name __pycache__ -prune -exec rm -rf {} +

# A stamp is newer than what it was made from, so a second run of any target installs nothing.
$(VENV)/.runtime: requirements.lock pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV), once" >&2
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) for development, once" >&2
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@# Compiles what tests import once, here, and not in two processes of the first run at a time.
	@$(BIN)/python -m pytest tests/unit --collect-only -qq >/dev/null 2>&1 || :
	@touch $@ $(VENV)/.runtime

# Without a C compiler everything runs as it is, and the benchmarks say so.
$(COMPILED)/.ready: deploy/wheel/compile_hook.py $(shell find $(ROOMS) -name '*.py' -o -name '*.p[yx]*' -o -name '*.avsc') \
		| $(VENV)/.dev
	@echo "compiling the hot path" >&2
	@rm -rf build/wheel $(COMPILED) && mkdir -p build/wheel $(COMPILED)
	@if $(WHEEL) --wheel-dir build/wheel . >build/compile.log 2>&1; \
	then $(BIN)/python -m zipfile -e build/wheel/*.whl $(COMPILED); \
	else echo "couldn't compile, build/compile.log says why: going on without" >&2; fi
	@touch $@

# An environment of their own: the peers need other versions of what we need. Without them the rest
# is measured all the same, and the table says what was not.
PEERS := tests/benchmarks/programs/requirements.lock
.venv-peers/.ready: $(PEERS) | $(BIN)/python
	@echo "setting up .venv-peers, once" >&2
	@$(BIN)/python -m venv .venv-peers
	@if .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		--only-binary :all: --require-hashes -r $(PEERS); then touch $@; \
	else echo "couldn't install the peers: they will not be measured" >&2; fi

$(BIN)/python:
	@for python in $(PYTHONS); do \
		if $$python -c '$(RIGHT_PYTHON)' 2>/dev/null; then \
			$$python -m venv $(VENV) && exit 0; rm -rf $(VENV); exit 1; \
		fi; \
	done; \
	echo "couldn't find Python 3.11 to 3.14 with venv: install it, or make PYTHON=/path/to/it" >&2; \
	exit 1
