# One command each. `make` alone says which.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What is compiled: a change of it is built anew by the next target that needs the environment.
COMPILED := $(shell find rcache rcache_client -name "*.pyx" -o -name "*.pxd")
# Options for `make serve`, `make cluster`, `make bench`, `make soak`, `make test`: make serve ARGS="--memory-limit 2G"
ARGS ?=
# Test processes. Most of the tests wait for processes and timers, so two at a time take little more than half as long.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup run serve cluster test check format bench soak prove soak-loops sanitize clean

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(STAMP) ## Create the environment in .venv (done by the others when it is needed)

run: $(STAMP) ## Cache real files, kill the server, rebuild, compare; ends by itself
	$(BIN)/python -m soak.demo $(ARGS)

serve: $(STAMP) ## A server in the foreground (ARGS="--listen 127.0.0.1:0 ...")
	$(BIN)/rcached $(ARGS)

cluster: $(STAMP) ## Three nodes in ./cluster-data on ports 13600 to 13602, in the foreground, to play with
	$(BIN)/python -m soak.play $(ARGS)

test: $(STAMP) ## Run all tests, two files at a time (ARGS="-k name"; WORKERS=0: one after the other)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(STAMP) ## Style, types, and the direction of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(STAMP) ## Bring the source into the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Measure beside Redis and memcached, about 20 minutes (ARGS="--quick", ARGS="--parts shapes log"); needs gcc
	$(BIN)/python -m soak.bench $(ARGS)

soak: $(STAMP) ## Break a cluster of real processes for a minute, and check every answer (ARGS="--nodes 5 --manager etcd --seconds 3600")
	$(BIN)/python -m soak.cluster $(ARGS)

prove: $(STAMP) ## The same for several seeds, and a table (ARGS="--seeds 1,2,3 --report out --manager etcd --seconds 1800")
	$(BIN)/python -m soak.prove $(ARGS)

soak-loops: $(STAMP) ## One server: kill -9 and stop under load, 50 rounds of each (ARGS="--rounds 5 --seed 1")
	$(BIN)/python -m soak.kill_loop --rounds 50 $(ARGS)
	$(BIN)/python -m soak.stop_loop --rounds 50 $(ARGS)

sanitize: $(STAMP) ## The native code under the compiler's sanitizers: tests, bytes that lie, stress (ARGS="thread"); needs gcc
	$(BIN)/python -m soak.sanitize $(ARGS)

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Anew whenever what it installs has changed. An environment that was left half made has no stamp, and is made again.
$(STAMP): pyproject.toml setup.py $(COMPILED)
	@set -e; python=; \
	for candidate in "$(PYTHON)" python3.13 python3.12 python3.11 python3; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "rcache needs Python 3.11 or newer; '$(PYTHON)' is not: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "'$$python' cannot make environments (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  "$$python" -m venv --clear $(VENV); \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	case "$$($(BIN)/rcached --version)" in \
	  *"engine: native"*"walks: compiled"*) ;; \
	  *) echo "WARNING: not all compiled parts could be built, and Python takes their place, many times slower." \
	       "'$(BIN)/python -m pip install -v -e .' says why; 'make -B setup' tries again" >&2 ;; \
	esac; \
	touch $@
