# Wardgate's targets. `make help` lists them; the parameters are written behind each.
#
# Everything that is made lies in build/. The linters are pinned here and built into
# build/tools, outside go.mod, so that they never decide which versions the product uses.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
FUZZTIME ?= 10m
N        ?= 2000
SEED     ?= 1
SAS      ?= 100000
SIZE     ?= 20G
KILLS    ?= 100
DEVICES  ?= 2000
DATABASE ?=
ROUNDS   ?= 3
SUBJECTS ?=
TESTS    ?=
COUNT    ?= 1000
TUNNELS  ?= 1,100,10000
RULES    ?= 10,100000
SECONDS_ := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),5)

# what `wardgate version` says; a tree without git says dev
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.version=$(VERSION)

BIN   := build/bin
TOOLS := build/tools
BENCH := build/bench

# The packages whose tests start real daemons in network namespaces. Their binaries are not
# built with -race: what they measure and time is the product as it is shipped.
E2E := ./internal/e2e/... ./internal/interop/...

GOFUMPT_VERSION      := v0.12.0
STATICCHECK_VERSION  := v0.8.2
GOLANGCILINT_VERSION := v2.15.0

# what bench-net compares with: the newest that Go 1.26 builds
WIREGUARD_VERSION := v0.0.0-20260522210424-ecfc5a8d5446
NEBULA_VERSION    := v1.10.3

.PHONY: help demo test lint fuzz interop soak kill sim sim-many bench bench-net bench-ike bench-sp flood clean \
	install build cross lint-lite test-unit test-sim test-e2e tools bench-peers bench-limit

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: install build ## from factory-fresh routers to the first image, a change of groups, a stolen router: in network namespaces (as root)
	$(BIN)/wardgate-lab demo --bin $(BIN)

test: install build cross lint-lite test-unit test-sim test-e2e ## everything that must be green: build, imports, unit tests with -race, end to end

lint: tools ## gofumpt, staticcheck, golangci-lint, at the versions pinned in the Makefile
	@out=$$($(TOOLS)/gofumpt -l $$(git ls-files '*.go')); [[ -z $$out ]] || { echo "not in gofumpt's format:"; echo "$$out"; exit 1; }
	$(TOOLS)/staticcheck ./...
	$(TOOLS)/golangci-lint run

fuzz: ## every fuzz target for FUZZTIME=10m
	@failed=; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$f for $(FUZZTIME)"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg || failed+=" $$pkg.$$f"; \
		done; \
	done; [[ -z $$failed ]] || { echo "findings in:$$failed (the inputs are in testdata/fuzz beside each test)"; exit 1; }

interop: install build ## against strongSwan, libreswan and OpenIKED, in network namespaces and guests (as root)
	CI=true $(GO) test -count=1 -timeout 20m -v ./internal/interop/...
	CI=true $(GO) test -count=1 -timeout 20m -v -run 'StrongSwan|OtherRouters' ./internal/e2e

soak: install build ## a transfer of SIZE=20G with rekeys every second and one packet in a thousand lost (as root)
	CI=true WARDGATE_SOAK=$(SIZE) $(GO) test -count=1 -timeout 2h -v -run '^TestSoak$$' ./internal/e2e

kill: install build ## router and centre killed at KILLS=100 random instants of joining, renewal and policy change, from SEED=1 (as root)
	CI=true WARDGATE_KILLS=$(KILLS) WARDGATE_SEED=$(SEED) $(GO) test -count=1 -timeout 2h -v -run '^TestKillAtAnyInstant$$' ./internal/e2e

sim: ## schedules of IKE SAs in a simulator (docs/simulator.md): N=2000 of them, the first with SEED=1
	@mkdir -p build
	@rm -f build/sim.txt; failed=0; \
		WARDGATE_SIM_N=$(N) WARDGATE_SIM_SEED=$(SEED) WARDGATE_SIM_OUT=$(CURDIR)/build/sim.txt $(GO) test -count=1 -timeout 12h -run '^TestSimulator$$' ./ike || failed=1; \
		cat build/sim.txt; exit $$failed

sim-many: ## SAS=100000 IKE SAs in one process, both ends of each: set up, idle for a virtual hour, all keys replaced, deleted
	WARDGATE_MANY_SAS=$(SAS) $(GO) test -count=1 -timeout 2h -v -run '^TestManyIKESAs$$' ./ike

# What CI plays, without -race, which costs ten times as much; test-unit plays a few with it.
test-sim:
	@$(MAKE) --no-print-directory sim N=20000 SEED=$(SEED)
	@$(MAKE) --no-print-directory sim-many SAS=5000
	$(GO) test -count=1 -timeout 20m -tags plantedbugs -run '^TestPlantedBugs$$' ./ike

bench: build ## packet and codec benchmarks: table, and JSON lines in build/bench/micro.jsonl (ROUNDS=3)
	@mkdir -p $(BENCH)
	$(GO) test -run '^$$' -bench . -benchmem -count $(ROUNDS) ./esp/... ./ike/message/... ./ike/suite/... ./policy/... ./router ./router/pathmtu ./router/wire ./tun/... \
		| $(BIN)/wardgate-lab benchjson --ratio Seal=Raw/Seal --ratio SealBatch=Raw/Seal --ratio Open=Raw/Open --ratio OpenBatch=Raw/Open \
			--out $(BENCH)/micro.jsonl

bench-ike: install build ## IKE set-ups: both ends in one process, then responders, ours and strongSwan's in turn (as root): build/bench/ike.jsonl (ROUNDS=3 SECONDS=5 COUNT=1000)
	@mkdir -p $(BENCH)
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(SECONDS_)s -count $(ROUNDS) ./ike \
		| $(BIN)/wardgate-lab benchjson --out $(BENCH)/ike.jsonl
	$(BIN)/wardgate-lab bench-ike --bin $(BIN) --rounds $(ROUNDS) --count $(COUNT) --tests '$(TESTS)' --out $(BENCH)/ike.jsonl

flood: install build ## 50,000 spoofed IKE_SA_INIT a second at a router on one processor, and honest peers beside them (as root)
	$(BIN)/wardgate-lab flood --bin $(BIN)

bench-net: install build bench-peers bench-limit ## Wardgate and other tunnels in turn, in network namespaces (as root): build/bench/net.jsonl (ROUNDS=3 SECONDS=5 SUBJECTS= TESTS=)
	@mkdir -p $(BENCH)
	$(BIN)/wardgate-lab bench-net --bin $(BIN) --tools $(TOOLS) --limit $(BENCH)/bin/wardgated --rounds $(ROUNDS) --seconds $(SECONDS_) \
		--subjects '$(SUBJECTS)' --tests '$(TESTS)' --tunnels '$(TUNNELS)' --rules '$(RULES)' --out $(BENCH)/net.jsonl

bench-sp: build ## DEVICES=2000 with TLS and long polls at one instance of the centre: build/bench/sp.jsonl (ROUNDS=3 DATABASE=)
	@mkdir -p $(BENCH)
	$(BIN)/wardgate-lab bench-sp --bin $(BIN)/wardgate-sp --devices $(DEVICES) --rounds $(ROUNDS) --database '$(DATABASE)' --out $(BENCH)/sp.jsonl

clean: ## remove build/ but for the linters, which take minutes to build
	@if [[ -d build ]]; then find build -mindepth 1 -maxdepth 1 ! -name tools -exec rm -rf {} +; fi

# --- what the targets above are made of -----------------------------------------------------

install:
	.ci/install

# wardgated and wardgate must never need cgo; the chip process is the only one that does.
build:
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/wardgated ./cmd/wardgate ./cmd/wardgate-lab ./cmd/wardgate-sp
	CGO_ENABLED=1 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/wardgate-chip

cross:
	@mkdir -p build/arm64
	CGO_ENABLED=0 GOARCH=arm64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o build/arm64/ ./cmd/wardgated ./cmd/wardgate

lint-lite:
	@out=$$(gofmt -l $$(git ls-files '*.go')); [[ -z $$out ]] || { echo "not formatted:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) test -count=1 ./internal/archtest

test-unit:
	CI=true $(GO) test -race -timeout 20m $$($(GO) list ./... | grep -vE '/internal/(e2e|interop|archtest)(/|$$)')

# One package after the other: they share the machine's two cores with the daemons they start. What failed is
# said once more at the end, after what the daemons of the failed tests logged.
test-e2e:
	@mkdir -p build
	CI=true $(GO) test -count=1 -p 1 -timeout 20m $(E2E) | tee build/e2e.txt || { \
		echo "what failed (all of it: build/e2e.txt):"; \
		grep -aE '^ *--- FAIL|^ +[a-z0-9_]+_test\.go:[0-9]+: |^panic|^FAIL' build/e2e.txt | grep -av 'go:[0-9]*: ----' | cut -c1-400 | tail -n 60; exit 1; }

tools: $(TOOLS)/.gofumpt-$(GOFUMPT_VERSION) $(TOOLS)/.staticcheck-$(STATICCHECK_VERSION) $(TOOLS)/.golangci-lint-$(GOLANGCILINT_VERSION)

$(TOOLS)/.gofumpt-$(GOFUMPT_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(CURDIR)/$(TOOLS) $(GO) install mvdan.cc/gofumpt@$(GOFUMPT_VERSION)
	@touch $@

$(TOOLS)/.staticcheck-$(STATICCHECK_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(CURDIR)/$(TOOLS) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
	@touch $@

$(TOOLS)/.golangci-lint-$(GOLANGCILINT_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(CURDIR)/$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCILINT_VERSION)
	@touch $@

# A peer that cannot be installed or built is told as "not available" by bench-net, which goes on
# without it.
bench-peers:
	@.ci/install bench || echo "bench-net: going on without what is not installed" >&2
	@$(MAKE) --no-print-directory -k $(TOOLS)/.wireguard-$(WIREGUARD_VERSION) $(TOOLS)/.nebula-$(NEBULA_VERSION) || echo "bench-net: going on without what could not be built" >&2

$(TOOLS)/.wireguard-$(WIREGUARD_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(CURDIR)/$(TOOLS) $(GO) install golang.zx2c4.com/wireguard@$(WIREGUARD_VERSION)
	@touch $@

$(TOOLS)/.nebula-$(NEBULA_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(CURDIR)/$(TOOLS) $(GO) install github.com/slackhq/nebula/cmd/nebula@$(NEBULA_VERSION) github.com/slackhq/nebula/cmd/nebula-cert@$(NEBULA_VERSION)
	@touch $@

# The data path without the cipher, to see what everything else costs. It lies apart from what is
# shipped, and says in its version what it is.
bench-limit:
	@mkdir -p $(BENCH)/bin
	CGO_ENABLED=0 $(GO) build -trimpath -tags wardgate_nocipher -ldflags '$(LDFLAGS)' -o $(BENCH)/bin/wardgated ./cmd/wardgated
