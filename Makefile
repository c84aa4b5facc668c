# Run make alone for the list of targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Run the sample service under load and print a slow trace with its flame graph
	go run ./cmd/spanflame demo

.PHONY: test
test: check test-unit test-e2e ## Run every check and test

.PHONY: check
check: ## Check formatting, vet, staticcheck and the allowed imports
	@echo "check: gofmt"
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	  if [[ -n "$$unformatted" ]]; then echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	@echo "check: go mod tidy"
	@go mod tidy -diff
	@echo "check: go vet"
	@go vet ./... && go vet -tags long ./e2e/... && cd bench && go vet ./...
	@echo "check: staticcheck"
	@go tool -modfile=tools/go.mod staticcheck ./...
	@echo "check: allowed imports"
	@go test ./internal/archtest

.PHONY: test-unit
test-unit: ## Run the tests that need no server, with the race detector
	go test -race $$(go list ./... | grep -v -e /e2e -e /stack)

.PHONY: test-e2e
test-e2e: servers ## Run the tests against the real Pyroscope and Tempo, with the race detector
	go test -race -count=1 -timeout 30m -v ./stack/... ./e2e/...

.PHONY: test-long
test-long: servers ## Run the end-to-end tests that take minutes: spans of every kind, outages, a soak
	go test -race -tags long -count=1 -timeout 60m -v ./e2e/...

.PHONY: bench
bench: ## Measure the agent beside its peers, as ratios of one run
	cd bench && go run ./handler && go run ./parked

.PHONY: servers
servers: ## Build the real servers, if they are not cached
	go run ./stack build

.PHONY: stack
stack: ## Run the real servers on loopback until Ctrl-C
	go run ./stack up

.PHONY: build
build: ## Build the spanflame binary into bin
	CGO_ENABLED=0 go build -trimpath -o bin/spanflame ./cmd/spanflame

.PHONY: clean
clean: ## Remove what builds and demos wrote, and the cached servers
	rm -rf bin data .cache
