# Millrace: `make` lists the targets. Everything is installed into .venv and ~/.cache/millrace (or $MILLRACE_CACHE).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3.11
VENV ?= .venv
RUNNER ?= prism
# Unit tests run in this many processes; service tests run alone, each starts several processes of its own.
WORKERS ?= 2
# Changed files, and as many changed deltas, that `make fuzz` tries.
RUNS ?= 1000000
# Entries of the tables in bench-peer.
KEYS ?= 10000000

bin := $(VENV)/bin
stamps := $(VENV)/stamps
protos := $(wildcard protos/*.proto)
peer := build/peer-venv
library := ops/_millrace_ops.so
library_sources := CMakeLists.txt $(shell find ops/cc -name '*.h' -o -name '*.cc' 2>/dev/null)
python_folders := build_tools cli examples ops pipelines runtime serving tests training transforms setup.py
cmake = cmake -S . -G Ninja -DPython3_EXECUTABLE=$(abspath $(bin)/python) -DMILLRACE_WERROR=ON

.PHONY: help setup demo test test-unit test-service test-cc lint format typecheck protos docs build asan tsan ubsan asan-ubsan sanitize bench bench-peer simulate chaos poison soak fuzz \
        conformance dist-check lock clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# What a step did is recorded in $(stamps): a second run of `setup` takes no time.

setup: $(stamps)/installed $(stamps)/servers $(stamps)/extras  ## install what is missing: packages, libraries, servers

$(stamps)/tools: build_tools/check_tools
	@PYTHON=$(PYTHON) build_tools/check_tools
	@mkdir -p $(@D) && touch $@

$(stamps)/packages: constraints.txt build_tools/install_packages | $(stamps)/tools
	@echo "setup: installing Python packages into $(VENV) (2.9 GB, about 4 minutes)"
	@PYTHON=$(PYTHON) build_tools/install_packages $(VENV)
	@$(bin)/python -m pip check --disable-pip-version-check
	@touch $@

$(stamps)/protos: $(protos) $(stamps)/packages
	@echo "setup: compiling protos"
	@$(bin)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(addprefix millrace/,$(protos))
	@touch $@

$(library): $(library_sources) $(stamps)/packages | $(stamps)/extras
	@echo "setup: building the C++ library (about 1 minute)"
	@$(cmake) -B build/cmake -DMILLRACE_TESTS=$$(test -e /usr/include/gtest/gtest.h && echo ON || echo OFF) >/dev/null
	@cmake --build build/cmake --target millrace_ops millrace_records
	@touch $@

$(stamps)/installed: setup.py pyproject.toml $(library) $(stamps)/protos
	@echo "setup: installing the millrace command"
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(stamps)/servers: runtime/servers/artifacts.py $(wildcard runtime/servers/poms/*.xml) $(stamps)/installed
	@echo "setup: fetching Kafka, ZooKeeper, Prism and Flink into the cache"
	@$(bin)/millrace dev fetch kafka zookeeper prism flink
	@touch $@

$(stamps)/extras: build_tools/install_extras | $(stamps)/tools
	@build_tools/install_extras && touch $@

demo: setup  ## run the whole loop on this machine (RUNNER=prism or flink, DATA=folder of ratings, RECIPE=file)
	@$(bin)/millrace demo --runner $(RUNNER) $(if $(DATA),--data $(DATA)) $(if $(RECIPE),--recipe $(RECIPE))

test: test-cc test-unit test-service  ## run all tests (15 minutes)

test-unit: setup  ## run the tests that need no servers (3 minutes)
	$(bin)/python -m pytest -m "not service" -n $(WORKERS) --dist loadfile

test-service: setup  ## run the tests against real servers
	$(bin)/python -m pytest -m service

test-cc: setup  ## run the C++ tests
	@cmake --build build/cmake --target embedding_test records_test snapshot_fuzz records_fuzz clone_digest \
	    clone_digest_baseline
	@cmp <(build/cmake/clone_digest) <(build/cmake/clone_digest_baseline)
	@build/cmake/embedding_test --gtest_brief=1
	@build/cmake/records_test --gtest_brief=1
	@build/cmake/snapshot_fuzz --runs 20000
	@build/cmake/records_fuzz --runs 10000

fuzz: setup  ## give damaged snapshots, deltas, records, streams and train blocks to their readers (RUNS=1000000)
	@cmake -S . -B build/asan-ubsan -G Ninja -DMILLRACE_SANITIZE=address,undefined >/dev/null
	@cmake --build build/asan-ubsan --target snapshot_fuzz records_fuzz
	@ASAN_OPTIONS=malloc_context_size=1 build/asan-ubsan/snapshot_fuzz --runs $(RUNS)
	@ASAN_OPTIONS=malloc_context_size=1 build/asan-ubsan/records_fuzz --runs $$(( $(RUNS) / 8 ))
	@$(bin)/python -m tests.fuzz.fuzz_deltas --runs $(RUNS)
	@$(bin)/python -m tests.fuzz.fuzz_predict --runs $$(( $(RUNS) / 8 ))
	@$(bin)/python -m tests.fuzz.fuzz_framing --runs $(RUNS)
	@$(bin)/python -m tests.fuzz.fuzz_records --runs $(RUNS)
	@$(bin)/python -m tests.fuzz.fuzz_train_blocks --runs $(RUNS)

# The libraries without TensorFlow and their tests: TensorFlow is not built for sanitizers.
asan tsan ubsan asan-ubsan: comma := ,
asan tsan ubsan asan-ubsan: sanitizer = $(subst asan,address,$(subst tsan,thread,$(subst ubsan,undefined,$(subst -,$(comma),$@))))
asan: $(stamps)/extras  ## run the C++ tests under AddressSanitizer
tsan: $(stamps)/extras  ## run the C++ tests under ThreadSanitizer
ubsan: $(stamps)/extras  ## run the C++ tests under UndefinedBehaviorSanitizer
asan-ubsan: $(stamps)/extras
asan tsan ubsan asan-ubsan:
	@cmake -S . -B build/$@ -G Ninja -DMILLRACE_SANITIZE=$(sanitizer) -DMILLRACE_WERROR=ON >/dev/null
	@cmake --build build/$@ --target embedding_test records_test
	@build/$@/embedding_test --gtest_brief=1
	@build/$@/records_test --gtest_brief=1

# What passed is remembered by the content of the C++ files, so that nothing runs twice for the same.
sanitized = $(or $(MILLRACE_CACHE),$(HOME)/.cache/millrace)/sanitized-$(shell cat CMakeLists.txt \
    $$(find ops/cc/embedding ops/cc/records tests/cc -type f | sort) | sha256sum | cut -c1-16)

sanitize: $(stamps)/extras  ## run the C++ tests under all three, unless equal C++ files passed before
	@test -e $(sanitized) || $(MAKE) --no-print-directory asan-ubsan tsan
	@mkdir -p $(dir $(sanitized)) && touch $(sanitized)

lint: $(stamps)/protos  ## check the Python files with ruff and mypy
	$(bin)/ruff check $(python_folders)
	$(bin)/ruff format --check $(python_folders)
	$(bin)/mypy

format: $(stamps)/packages  ## let ruff rewrite the Python files
	$(bin)/ruff check --fix $(python_folders)
	$(bin)/ruff format $(python_folders)

typecheck: $(stamps)/protos  ## check the types with mypy
	$(bin)/mypy

protos: $(stamps)/protos  ## compile protos/*.proto

docs: setup  ## write docs/transforms.md from the code
	@$(bin)/python -m build_tools.transforms_doc

build: $(library)  ## build the C++ libraries

bench: setup build/cmake/store_bench  ## measure every stage (JSON=1: for scripts, ONLY=NAME: one of them)
	@$(bin)/millrace bench $(if $(JSON),--json) $(if $(ONLY),--only $(ONLY))

build/cmake/store_bench: $(library) $(wildcard tests/benchmarks/cc/*)
	@cmake --build build/cmake --target store_bench
	@touch $@

# TFRA (TensorFlow Recommenders Addons) needs an older TensorFlow, so it has an environment of its own.
$(peer)/installed: tests/benchmarks/peer/requirements.txt | $(stamps)/tools
	@echo "bench-peer: installing TFRA and its TensorFlow into $(peer) (2.4 GB, about 1 minute)"
	@$(PYTHON) -m venv $(peer)
	@$(peer)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-peer: $(peer)/installed  ## measure another embedding store, TFRA, which later benches show for comparison (KEYS=10000000)
	@for zipf in 1.05 0; do \
	    $(peer)/bin/python tests/benchmarks/peer/tfra_peer.py --keys $(KEYS) --zipf $$zipf | grep '^{'; \
	done

MINUTES ?= 10

simulate: setup  ## run the feed, trainers and servers in simulated worlds full of faults (SEEDS=10000, SEED=N for one)
	@$(bin)/python -m tests.simulation.run --seeds $(or $(SEEDS),10000) $(if $(SEED),--seed $(SEED))

chaos: setup  ## strike feed, trainer, server and broker, and count every row (SEEDS=8, SCENARIO=NAME for one, FULL=1)
	@$(bin)/python -m tests.chaos.run --seeds $(or $(SEEDS),8) $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(FULL),--full)

poison: setup  ## poison the rows of a served model, and see that its guard stops it in time (SEEDS=10, DATA=folder of ratings)
	@$(bin)/python -m tests.chaos.poison --seeds $(or $(SEEDS),10) $(if $(DATA),--data $(DATA))

soak: setup  ## run the feed on each runner at 70% of its highest rate, and watch its memory (MINUTES=10)
	@$(bin)/python -m tests.benchmarks.soak --minutes $(MINUTES)

conformance: $(stamps)/installed $(stamps)/extras  ## count the specification's vectors that tests assert (UPDATE=1 stores the state, LOSS=1 with losses)
	@if test -e /usr/include/gtest/gtest.h; then \
	    grep -qs '^MILLRACE_TESTS:BOOL=ON' build/cmake/CMakeCache.txt \
	        || $(cmake) -B build/cmake -DMILLRACE_TESTS=ON >/dev/null; \
	    cmake --build build/cmake --target embedding_test records_test; \
	fi
	@$(bin)/python build_tools/conformance.py $(if $(JSON),--json) $(if $(UPDATE),--update) $(if $(LOSS),--allow-loss)

dist-check: setup  ## build sdist and wheel, and use the wheel in a new environment and an empty folder (7 minutes)
	@$(bin)/python -m build_tools.dist_check

lock: $(stamps)/packages  ## write constraints.txt from what is installed
	@$(bin)/python build_tools/lock.py >constraints.tmp && mv constraints.tmp constraints.txt

clean:  ## remove what was built, but not .venv and not the cache
	rm -rf build ops/_millrace_ops.* ops/_millrace_records.so protos/*_pb2.py protos/*_pb2.pyi .pytest_cache .mypy_cache .ruff_cache demo-report
	rm -rf $(stamps)/protos *.egg-info
