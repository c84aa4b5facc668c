# Run make alone for the list of targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Without inlining and debugging information the build takes a third less time: the demo is the first thing that a
# newcomer waits for.
.PHONY: demo
demo: ## Run the workload with faults under load, open its slowest trace, repair the faults and compare
	@echo "building the demo (about a minute the first time)"
	@CGO_ENABLED=0 go build -buildvcs=false -gcflags=all=-l -ldflags='-s -w' -o bin/spanflame-demo ./cmd/spanflame
	@bin/spanflame-demo demo

.PHONY: test
test: check test-unit test-kubernetes test-e2e ## Run the checks and the tests (not test-stack, test-compose and test-long)

PLATFORMS := linux/amd64 linux/arm64 linux/386 darwin/amd64 darwin/arm64 freebsd/amd64 freebsd/arm64 windows/amd64 windows/arm64

# vet compiles what it checks and links nothing, which nine builds of the program would spend most of their time on. The
# program needs Unix: docs/platforms.md describes what works where.
.PHONY: platforms
platforms: ## Check that the agent and the program compile for all supported platforms (minutes the first time)
	@for p in $(PLATFORMS); do \
	  echo "platforms: $$p"; \
	  packages='./agent/... ./cmd/spanflame/...'; [[ $$p != windows/* ]] || packages=./agent/...; \
	  CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go vet $$packages || exit 1; \
	done

.PHONY: check
check: ## Check formatting, line lengths, go.mod, vet, staticcheck and the allowed imports
	@echo "check: gofmt"
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	  if [[ -n "$$unformatted" ]]; then echo "not formatted; run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	@echo "check: line lengths"
	@long=$$(git ls-files -co --exclude-standard '*.go' | LC_ALL=C.UTF-8 xargs -d '\n' grep -nE '^.{161,}' | cut -d: -f1,2 || true); \
	  if [[ -n "$$long" ]]; then echo "lines beyond 160 columns, wrap them:"; echo "$$long"; exit 1; fi
	@echo "check: go mod tidy"
	@go mod tidy -diff
	@echo "check: go vet"
	@go vet ./... && go vet -tags long,stack ./e2e/... ./examples ./examples/service ./agent ./workload ./cmd/spanflame/demo && go vet -tags compose ./e2e/... && go -C bench vet ./... && go -C deploy/kubernetes/check vet ./...
	@echo "check: staticcheck"
	@go tool -modfile=tools/go.mod staticcheck ./...
	@echo "check: allowed imports"
	@go test ./internal/archtest

.PHONY: test-unit
test-unit: programs ## Run the tests that need no server, with the race detector
	go test -race $$(go list ./... | grep -v -e /e2e -e /stack)
	go test ./profiles/... # with those that measure memory or simulate, which the race detector disturbs or slows down tenfold

.PHONY: test-kubernetes
test-kubernetes: ## Render the charts and validate all manifests against the Kubernetes schemas
	cd deploy/kubernetes/check && go test ./...

# The tests of the pages need a browser, and Graphviz for pprof's graphs; the tests of the workload's orders need PostgreSQL. If these
# programs cannot be installed, the tests that need them are skipped with a message.
.PHONY: programs
programs:
	@missing=(); \
	command -v chromium chromium-browser google-chrome chrome >/dev/null || missing+=(chromium); \
	command -v dot >/dev/null || missing+=(graphviz); \
	compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql); \
	[[ $${#missing[@]} -eq 0 ]] || { \
	  echo "installing for the tests: $${missing[*]}"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$${missing[@]}" >/dev/null; } || \
	  echo "cannot install $${missing[*]} here: the tests that need them are skipped; on Debian, as root: apt-get install $${missing[*]}"

# Grafana's flame graph component comes from the npm registry.
.PHONY: npm
npm:
	@command -v npm >/dev/null || { echo "installing for the tests: npm"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends npm >/dev/null; }

.PHONY: test-e2e
test-e2e: servers programs ## Run the tests against the real Pyroscope and Tempo, with the race detector
	go test -race -count=1 -timeout 30m -v ./stack/... ./e2e/...

.PHONY: test-stack
test-stack: ## Run the whole pipeline on the real servers and follow every link between its signals
	go test -race -tags stack -count=1 -timeout 60m -v ./e2e -run TestStack

.PHONY: test-compose
test-compose: ## Run docker-compose.yml on a Docker engine, follow its links and restart its servers under load
	go test -tags compose -count=1 -timeout 60m -v -run TestCompose ./e2e

.PHONY: test-long
test-long: servers programs npm ## Run the end-to-end tests that take minutes: spans of every kind, outages, a soak, instances that share a host, equal windows, the CI job, what the workload's faults cost
	go test -race -tags long -count=1 -timeout 60m -v ./e2e/...
	go test -tags long -count=1 -timeout 10m -v -run 'Cgo|Execs|ManyParked' ./agent
	go test -tags long -count=1 -timeout 30m -v -run TestMedians ./workload # predictions need the machine for themselves
	$(MAKE) test-truth
	go test -tags long -count=1 -timeout 30m -v -run TestTheJobOfThePage ./examples # a gate needs the machine for itself

.PHONY: test-truth
test-truth: ## Make each mistake of examples/service and of the workload, and compare its diagnosis with what is to blame; UPDATE=-update writes examples/README.md and docs/faults.md
	go test -tags long -count=1 -timeout 10m -v -run Shop ./examples/service $(UPDATE)
	go test -tags long -count=1 -timeout 90m -v -run 'TestTruth|TestFaultsInTurn' ./cmd/spanflame/demo $(UPDATE)

.PHONY: pictures
pictures: servers programs npm ## Redraw the pictures of the README, in the browser test
	SPANFLAME_PICTURES=$(CURDIR)/docs/pictures go test -tags long -count=1 -timeout 30m -run Browser ./e2e

.PHONY: examples
examples: ## Record the profiles in examples again, and update its page
	go run ./examples/record
	go test -count=1 ./examples -update

.PHONY: bench-quick
bench-quick: ## Measure what profiling adds to a handler, in two minutes
	cd bench && go run ./handler -rounds 5 -slice 300ms -warm 8s

.PHONY: bench
bench: ## Measure the agent and its peers, as ratios of one run
	cd bench && go run ./handler && go run ./parked && go run ./deltas

.PHONY: servers
servers: ## Build the real servers if they are not cached
	go run ./stack build --servers=pyroscope,tempo

.PHONY: stack
stack: ## Run the real servers on loopback until Ctrl-C; SERVERS=pyroscope,tempo runs only some
	go run ./stack up $(if $(SERVERS),--servers=$(SERVERS))

.PHONY: build
build: ## Build the spanflame binary into bin
	CGO_ENABLED=0 go build -trimpath -o bin/spanflame ./cmd/spanflame

.PHONY: clean
clean: ## Remove the output of builds and demos, and the cached servers
	rm -rf bin data .cache
