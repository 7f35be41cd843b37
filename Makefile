# make demo    try it: an embedded blob service, mounted at ./demo
# make test    everything that proves it: unit tests, Azurite, FUSE mounts
# make help    all targets

# Needs GNU make. SHELL is what every POSIX system has.
SHELL := /bin/sh
.DEFAULT_GOAL := build

GO ?= go
PREFIX ?= /usr/local
DESTDIR ?=
# Where mount(8) looks for helpers; it looks nowhere else.
HELPERDIR ?= /sbin

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := $(if $(VERSION),-X main.version=$(VERSION))

# The bound of one package. A hung test then ends with the stacks of all goroutines.
TEST_TIMEOUT ?= 10m
# Flags for `go test`, such as TESTFLAGS=-v or TESTFLAGS='-run TestFind'.
TESTFLAGS ?=

AZURITE := integration/node_modules/.package-lock.json

.PHONY: build test check race bench demo demo-stop install uninstall azurite fuse clean help

help: ## show this text
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1#\2/p' $(MAKEFILE_LIST) | while IFS='#' read -r t d; do printf '  make %-10s %s\n' "$$t" "$$d"; done

build: ## build bin/blobmount and bin/blobserver (the embedded service)
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/blobmount ./cmd/blobmount
	$(GO) build -o bin/blobserver ./integration/cmd/blobserver

demo: build ## start the embedded service with sample data, and mount it at ./demo
	@integration/demo.sh start

demo-stop: build ## unmount ./demo and stop the service
	@integration/demo.sh stop

# -count=1: tests that use the kernel and another program must run, whatever the cache of results says.
test: fuse azurite ## run every test, with Azurite (by npm) and FUSE mounts (as root)
	$(GO) test -count=1 -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

check: ## gofmt, vet, staticcheck, and the tests with the race detector (needs a C compiler)
	@files=$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 "$$($(GO) env GOROOT)/bin/gofmt" -l); \
		[ -z "$$files" ] || { echo "These files are not formatted; run gofmt -w on them:"; echo "$$files"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@$(MAKE) --no-print-directory race

race: fuse azurite
	@command -v "$$($(GO) env CC)" >/dev/null || { echo "make: the race detector needs a C compiler ($$($(GO) env CC)); on Debian: apt-get install gcc libc6-dev" >&2; exit 1; }
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

# WORKLOADS is a regular expression, RUNS how often each is run, SCALE a factor for all sizes. All of it takes half an
# hour. BENCHFLAGS=--write keeps the report in integration/BENCHMARKS.md, BENCHFLAGS=--list names the workloads.
WORKLOADS ?=
RUNS ?= 3
SCALE ?= 1
BENCHFLAGS ?=

bench: ## measure against targets, as root on real mounts (WORKLOADS=, RUNS=3, SCALE=1, BENCHFLAGS=)
	$(GO) run ./integration/bench --workloads '$(WORKLOADS)' --runs $(RUNS) --scale $(SCALE) $(BENCHFLAGS)

# Without FUSE or root the tests of mounts would skip, and a green result would mean nothing.
fuse:
	@[ -c /dev/fuse ] || { echo "make: there is no /dev/fuse: run modprobe fuse, or start the container with --device /dev/fuse --cap-add SYS_ADMIN" >&2; exit 1; }
	@[ "$$(id -u)" = 0 ] || echo "make: not root, so the tests of mounts are skipped" >&2

azurite: $(AZURITE)

# npm writes this file at the end of an installation. ci installs exactly what the lock file says; no package's own
# scripts are run.
$(AZURITE): integration/package.json integration/package-lock.json
	@command -v npm >/dev/null || { echo "make: npm was not found; the tests against Azurite need Node.js 18 or later: https://nodejs.org, on Debian apt-get install nodejs npm" >&2; exit 1; }
	npm ci --prefix integration --ignore-scripts --no-audit --no-fund
	@touch $@

install: build ## install the binary and the mount helper (DESTDIR, PREFIX, HELPERDIR)
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(HELPERDIR)'
	install -m 0755 bin/blobmount '$(DESTDIR)$(PREFIX)/bin/blobmount'
	ln -sfn '$(PREFIX)/bin/blobmount' '$(DESTDIR)$(HELPERDIR)/mount.blobmount'

uninstall: ## remove what install put there
	rm -f '$(DESTDIR)$(PREFIX)/bin/blobmount' '$(DESTDIR)$(HELPERDIR)/mount.blobmount'

clean: ## remove bin
	rm -rf bin
