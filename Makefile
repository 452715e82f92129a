# Everything runs in .venv, which the first target that needs it makes.

PYTHON ?= python3
BIN    := .venv/bin
LOCK   := requirements-dev.lock
C_CODE := $(shell find protocol shm nodeworker -name '*.[ch]')
JSON   ?=
CLANG  ?= clang
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Else each of the thousands of interpreters that the tests start would compile all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint unit sanitize fuzz test-systemd test-debian model rust go soak search chaos mutants bench-data bench-c bench-start bench-recover bench-upgrade bench-idle bench-fan bench-flow bench-loop bench-compile reference docs wheel lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/demo ## run 336 776 flights through a real daemon: one source, two maps, one sink
	@$(BIN)/python -m examples.flights.demo

test: lint unit ## all checks: style, types, import contract, tests

lint: .venv/dev ## ruff, mypy --strict, import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: .venv/dev ## the tests alone; T="PATH -k WORD" for some of them
	$(BIN)/pytest -n auto --dist worksteal $(T)

sanitize: .venv/dev ## the data plane under ASan, UBSan and TSan, for long (a few minutes; the tests do it for a moment)
	SANITIZE_SCALE=$(or $(SCALE),20) $(BIN)/pytest -n auto tests/shm/test_native.py tests/shm/test_sanitized_extension.py \
		tests/shm/test_older_kernels.py
	$(BIN)/pytest -n auto tests/sdk/c -k address

fuzz: ## what a peer may have written, found by libFuzzer (clang; SECONDS=60)
	@command -v $(CLANG) >/dev/null || { echo "clang is missing: apt-get install clang libclang-rt-14-dev, or make CLANG=clang-14 fuzz" >&2; exit 1; }
	mkdir -p build/fuzz/corpus
	$(CLANG) -std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Ishm/include \
		tests/shm/native/fuzz.c -o build/fuzz/fuzz
	cd build/fuzz && ./fuzz -max_total_time=$(or $(SECONDS),60) -max_len=512 -print_final_stats=1 corpus

test-systemd: .venv/dev ## the service below a real systemd: boots a Debian in a container (root; the first time takes minutes)
	$(BIN)/pytest tests/systemd/booted.py -p no:randomly

test-debian: ## the README's two commands in a bare Debian 12, of what is committed (root; takes long)
	.ci/debian

# Fuzzing is limited by a count: go test fails now and then ("context deadline exceeded") when a time limit ends it.
go: .venv/dev ## the Go SDK by itself: form, vet, tests with the race detector, some fuzzing (EXECS=N for each)
	@command -v go >/dev/null || { echo "Go is missing (1.23 or later): https://go.dev/dl" >&2; exit 1; }
	cd sdk/go && test -z "$$(gofmt -l .)" && go vet ./... && go test -race -count=1 ./...
	cd sdk/go && for each in wire:FuzzDecoder shm:FuzzRing shm:FuzzCredit shm:FuzzHeader; do \
		go test -run '^$$' -fuzz "^$${each#*:}\$$" -fuzztime $(or $(EXECS),50000)x -fuzzminimizetime 1x ./internal/$${each%:*} || exit 1; done
	CHRONETIX_GO_RACE=1 $(BIN)/pytest -q -n auto tests/sdk/go/test_features.py tests/sdk/go/test_lives.py

rust: ## the Rust SDK by itself: form, clippy, tests (golden bytes, properties)
	@command -v cargo >/dev/null || { echo "cargo is missing (Rust 1.87 or later, with rustfmt and clippy): https://rustup.rs" >&2; exit 1; }
	cd sdk/rust && cargo fmt --check && cargo clippy --quiet --locked --all-targets --target-dir $(CURDIR)/build/rust -- -D warnings
	cd sdk/rust && cargo test --quiet --locked --target-dir $(CURDIR)/build/rust

model: ## the ring protocol in every interleaving, under weak memory (Rust; a minute or two)
	@command -v cargo >/dev/null || { echo "cargo is missing (Rust 1.78 or later, with rustfmt and clippy): https://rustup.rs, or apt-get install rustup && rustup default stable" >&2; exit 1; }
	cd tests/model && cargo fmt --check && cargo clippy --quiet --locked --all-targets -- -D warnings
	cd tests/model && cargo test --quiet --locked --release

soak: .venv/dev ## kill the ends of routes at random for ten minutes (SECONDS=N)
	CHRONETIX_SOAK_S=$(or $(SECONDS),600) $(BIN)/pytest -q tests/shm/test_crash.py -k random --timeout 0

search: .venv/dev ## kills, and pairs of them, between any two steps of roll-outs, over the real tables (minutes; the tests play some)
	CHRONETIX_SEARCH=1 nice $(BIN)/pytest -q -n auto tests/chronetixd/core/test_wiring_search.py

chaos: .venv/dev ## a storm over a real daemon: kills, stops, garbage, want of everything (an hour; SECONDS=N, SEED=N)
	nice $(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),3600) $(if $(SEED),--seed $(SEED))

mutants: .venv/dev ## changes one thing at a time in the code and looks whether tests notice (root; N=60, SEED=N, AREAS=core,ctl)
	nice -n 19 $(BIN)/python -m tests.mutants --count $(or $(N),60) $(if $(SEED),--seed $(SEED)) $(if $(AREAS),--areas $(AREAS))

bench-data: .venv/bench ## data plane beside its rivals, in one run (JSON=FILE for one object a line)
	$(BIN)/python -m bench.data --best-of 3 $(if $(JSON),--json $(JSON))

bench-c: .venv/dev ## C to C by iceoryx2's own method: two pinned threads, then two processes
	$(BIN)/python -m bench.ctoc $(if $(JSON),--json $(JSON))

bench-start: .venv/dev ## 50 workers from submit to running, beside warm forks and cold interpreters
	$(BIN)/python -m bench.start $(if $(JSON),--json $(JSON))

bench-idle: .venv/dev ## wake-ups and processor time of 100 workers that do nothing, and that are held up
	$(BIN)/python -m bench.quiet $(if $(JSON),--json $(JSON))

bench-fan: .venv/dev ## one producer and 1 to 64 consumers, and the other way round, each a process
	$(BIN)/python -m bench.fan $(if $(JSON),--json $(JSON))

bench-flow: .venv/bench ## a flow as its author writes it, beside pyzmq, multiprocessing, dora and Ray in the same run
	$(BIN)/python -m bench.flow $(if $(JSON),--json $(JSON))

bench-recover: .venv/bench ## from kill -9 of a worker to its successor's first frame, beside supervisord and dora
	$(BIN)/python -m bench.recover $(if $(JSON),--json $(JSON))

bench-compile: .venv/dev ## flows of 100 to 10,000 nodes from their text to their compiled form
	$(BIN)/python -m bench.compile $(if $(JSON),--json $(JSON))

bench-loop: .venv/dev ## what a neighbour's version takes while others start, die, are described, wait for a disk
	$(BIN)/python -m bench.loop $(if $(JSON),--json $(JSON))

reference: .venv/dev ## make docs/reference/, docs/states.md and docs/events.md anew from the code
	CHRONETIX_DRAW=1 $(BIN)/pytest -q tests/docs tests/chronetixd/core/test_diagram.py tests/chronetixd/records/test_event_catalogue.py \
		tests/sdk/c/test_errors.py tests/sdk/rust/test_errors.py

docs: .venv/dev ## the documents as a site in build/site; a link that leads nowhere fails
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env -c docs . build/site

bench-upgrade: .venv/dev ## how long the control plane stands still while the daemon is replaced in place
	$(BIN)/python -m bench.upgrade $(if $(JSON),--json $(JSON))

wheel: .venv/dev ## an sdist in dist/, and of it an abi3 wheel for any Python from 3.11 on (DIST=FOLDER)
	$(BIN)/uv build --quiet --python $(BIN)/python --out-dir $(or $(DIST),dist)

lock: .venv/dev ## pin the development environment anew
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --all-extras --python-version 3.11 -o $(LOCK) pyproject.toml

clean: ## remove what was built
	rm -rf .venv build dist *.egg-info protocol/*.so shm/*.so nodeworker/*.so tests/model/target

# One stamp for each set of extras; rebuilt when the C code or the requirements change.
.venv/%: pyproject.toml setup.py $(LOCK) $(C_CODE) | .venv/python
	@echo "installing chronetix[$*] into .venv (the first time takes a minute) …" >&2
	@PYTHONWARNINGS='ignore:Editable installation' $(BIN)/pip install --quiet --no-compile -c $(LOCK) -e '.[$*]'
	@touch $@

.venv/python:
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install gcc python3-dev" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python venv support is missing: apt-get install python3-venv" >&2; exit 1; }
	@touch $@
