.DEFAULT_GOAL := help
.PHONY: help setup environment run cluster test robustness test-slow test-native check fix generate lock bench bench-peers compiled sim wheels test-all

BIN := .venv/bin

help: ## show the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## make all that there is to make: the locked environment (.tools, .venv), the native edge, the compiled copy
	@scripts/setup

environment:
	@scripts/setup develop

run: ## start the server on its embedded default; installs nothing that only development needs
	@scripts/setup run
	@$(BIN)/chatgrpc serve

cluster: environment ## start three nodes on real etcd, Redis and Cassandra, to chat through
	@scripts/cluster

test: environment ## run every test that takes less than fifteen seconds
	@scripts/test $(ARGS)

test-slow: environment ## the tests that take longer than fifteen seconds each, faults of whole clusters among them; CI runs them too
	@scripts/test-slow $(ARGS)

test-native: environment ## the suites that speak with servers, on the native edge; CI runs them too
	@scripts/test-native $(ARGS)

test-all: environment ## every test, and what is too long for `make test`; about two hours
	@scripts/test-all

robustness: environment ## the faults and attacks, to their end; ARGS="tests/robustness/cluster" for the cluster's alone
	@$(BIN)/pytest --long $(or $(ARGS),tests/robustness)

check: environment ## style, types, layers, protos, generated code up to date
	@scripts/check

fix: environment ## let ruff mend what it can
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

generate: environment ## generate the protobuf and gRPC code anew
	@scripts/generate

lock: environment ## pin the newest allowed dependencies in requirements.lock
	@scripts/lock --upgrade && scripts/setup develop

bench: setup ## measure each edge, beside a raw echo; ARGS="--help" tells more
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-peers: setup ## measure each edge beside Centrifugo over Redis, which it builds; ARGS="--help" tells more
	@$(BIN)/python -m benchmarks.peers $(ARGS)

wheels: environment ## build the three distributions into dist/, to install elsewhere
	@scripts/wheels

compiled: environment ## compile what runs most; `chatgrpc` runs that while the sources are the same
	@$(BIN)/python -m scripts.compile server

sim: environment ## simulate clusters: SEEDS=1000 FROM=0, or SEED=42 to replay one with its trace; COMPILED=1 for many
	@$(if $(COMPILED),$(BIN)/python -m scripts.compile sim && cd .sim && ../)$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000) --from $(or $(FROM),0))
