# Everything one can do here; `make` alone lists it. CI calls the same targets.

CARGO    ?= cargo
TRIPLE   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BIN      := $(or $(CARGO_TARGET_DIR),target)/$(TRIPLE)/release/gosandbox
GO       ?= default
export GOSANDBOX_EXAMPLES ?= $(CURDIR)/target/examples

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'

.PHONY: demo
demo: build ## build all, run an example tenant, show what it can and cannot do
	@examples/build $(GO) web plain probe whoami
	@examples/demo $(BIN)

.PHONY: test
test: setup lint unit tenants integration ## all tests

.PHONY: build
build: rust ## the one static executable, optimised
	@$(CARGO) build --release --quiet
	@echo "built $(BIN)"

.PHONY: rust
rust:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.91 or later (https://rustup.rs)" >&2; exit 1; }
	@tests/need cc gcc
	@tests/need ld libc6-dev /usr/include/stdlib.h

.PHONY: setup
setup: rust ## install what the tests need, with a line for each
	@tests/need strace strace
	@tests/need curl curl
	@tests/need ip iproute2
	@tests/need readelf binutils
	@tests/need git git
	@tests/need musl-gcc musl-tools
	@tests/need wrk wrk || echo "SKIPPED: no wrk" >&2
	@tests/need python3 python3
	@tests/unpack /usr/share/containers/seccomp.json golang-github-containers-common
	@tests/unpack /usr/bin/caddy caddy
	@tests/unpack /usr/bin/prometheus prometheus
	@tests/unpack '/usr/lib/postgresql/*/bin/initdb' postgresql
	@examples/build all

.PHONY: lint
lint: ## formatting and clippy, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings

.PHONY: unit
unit: ## tests of everything pure
	$(CARGO) test --lib

.PHONY: tenants
tenants: ## tests that start real sandboxes, as root and as a user
	$(CARGO) test --no-fail-fast --test '*'; status=$$?; \
	[ ! -w /var/lib/gosandbox/ids ] || sed -i '/^t[0-9]*-[0-9]* /d' /var/lib/gosandbox/ids; \
	rm -f /run/gosandbox/t[0-9]*-[0-9]*.refused.json; exit $$status

.PHONY: integration
integration: build ## tests with real limits, in a virtual machine; HOST=1: on this one; KERNEL=package: another kernel
	@examples/build all
	@GOSANDBOX_BIN=$(abspath $(BIN)) HOST=$(HOST) KERNEL=$(KERNEL) integration/run

.PHONY: golden
golden: ## write the golden plans anew; look at the difference
	GOSANDBOX_UPDATE=1 $(CARGO) test --lib golden_plans >/dev/null; git diff --stat tests/golden

.PHONY: tables
tables: ## write policies/SYSCALLS.md anew
	GOSANDBOX_UPDATE=1 $(CARGO) test --lib the_page_is_what >/dev/null; git diff --stat policies

.PHONY: derive
derive: ## trace the examples anew into policies/observed.tsv
	@policies/derive

.PHONY: parameters
parameters: ## write src/seccomp/parameters.tsv anew from this kernel (root)
	@policies/parameters

.PHONY: bench-launch
bench-launch: build ## time a Go hello: bare, C floor, bubblewrap, gosandbox
	@tests/need bwrap bubblewrap
	@examples/build $(GO) hello
	@tests/bench/run launch $(BIN)

.PHONY: bench-broker
bench-broker: build ## time requests, dials, listeners and launches with and without the broker
	@tests/need wrk wrk
	@examples/build $(GO) hello plain dials
	@tests/bench/run broker $(BIN)

.PHONY: bench-seccomp
bench-seccomp: rust ## time system calls under the filter, and making and loading it
	@$(CARGO) bench --quiet --bench seccomp

.PHONY: bench-runtime
bench-runtime: build ## what GOMEMLIMIT and GOMAXPROCS do under real limits, in the virtual machine
	@examples/build $(GO) web hello plain churn
	@GOSANDBOX_BIN=$(abspath $(BIN)) HOST=$(HOST) KERNEL=$(KERNEL) integration/run bench-runtime

PREFIX   ?= /usr/local
UNITDIR  ?= $(PREFIX)/lib/systemd/system
.PHONY: install
install: build ## install the program and its unit templates below PREFIX (and DESTDIR)
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/gosandbox
	install -d $(DESTDIR)$(UNITDIR)
	for unit in gosandbox@.service gosandbox@.socket gosandbox.slice; do \
		sed 's|@BINDIR@|$(PREFIX)/bin|' src/units/$$unit >$(DESTDIR)$(UNITDIR)/$$unit; done
	@# systemd 254 moves the supervisor by itself; 252 would warn of the key.
	@v=$$(systemctl --version 2>/dev/null | sed -n '1s/systemd \([0-9]*\).*/\1/p'); \
	if [ "$${v:-0}" -ge 254 ]; then \
		sed -i '/^Delegate=yes/a DelegateSubgroup=_supervisor' $(DESTDIR)$(UNITDIR)/gosandbox@.service; fi

.PHONY: clean
clean: ## remove what was built, toolchains included
	rm -rf target
