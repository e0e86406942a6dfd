# The index of verbs. Everything that CI does is here; `make help` lists it.
GO      ?= go
GOARCH  := $(shell $(GO) env GOARCH)
INIT    := sandbox/runtime/embedded/naru-init-$(GOARCH)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
RUNTIME := nginx git busybox-static ca-certificates
TESTING := $(RUNTIME) gcc libc6-dev docker-registry umoci skopeo runc iproute2 nftables procps musl-tools xz-utils bzip2 zstd
VM      := $(TESTING) qemu-system-x86 e2fsprogs kmod

comma := ,

export CGO_ENABLED ?= 0

.PHONY: help build init demo test race crash hostile test-vm test-vm-smoke lint check bench oci-validation oci-engines dockerfiles apps fuzz clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# nomsgpack leaves out a codec of gin's that nothing here speaks, and its share of
# every command's start.
build: init ## bin/naru, with the small init program embedded
	$(GO) build -trimpath -tags nomsgpack -ldflags '-s -w -X naru/cli.version=$(VERSION)' -o bin/naru .

init: ## the small program that starts inside containers
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(INIT) ./sandbox/runtime/launch/cmd/naru-init

demo: ## the main job, end to end, on loopback: make demo [KEEP=1]
	@scripts/deps $(RUNTIME)
	@$(MAKE) --no-print-directory build
	@$(GO) run ./scripts/demo $(if $(KEEP),-keep)

# The end-to-end tests of the root package count what the machine has, and
# measure a load: they run alone, after the others.
test: ## all tests, as root
	@scripts/deps $(TESTING)
	@$(MAKE) --no-print-directory build
	$(GO) test -count=1 -timeout 10m $$($(GO) list ./... | grep -vx naru)
	$(GO) test -count=1 -timeout 12m .

race: init ## the tests of the parts with goroutines, under the race detector
	@scripts/deps $(TESTING)
	CGO_ENABLED=1 $(GO) test -count=1 -race -timeout 10m ./pipeline ./agent/... ./webhooks/... ./configs/... ./internal/...

crash: init ## kill creator, monitor and init at every step of create, start, stop, exec and log rotation; prints a table
	@scripts/deps $(TESTING)
	NARU_CRASH=all $(GO) test -count=1 -timeout 30m -run 'TestKilledAtEveryStep' -v ./sandbox

hostile: init ## all hostile builds, beside an app under load; prints what its users felt
	@scripts/deps $(TESTING)
	NARU_HOSTILE=all $(GO) test -count=1 -timeout 20m -run '^TestHostileBuilds$$' -v ./sandbox

# KERNEL=path/to/vmlinuz MODULES=path/to/lib/modules/VERSION boot another kernel
# than Debian's; PACKAGES and RUN choose what runs.
test-vm: init ## the tests of the sandbox in qemu, on Debian's kernel with cgroup v2 alone: [KERNEL= MODULES=] [PACKAGES=./sandbox/…] [RUN=regexp]
	@scripts/deps $(VM)
	@$(GO) run ./scripts/test-vm $(foreach o,KERNEL MODULES PACKAGES RUN,$(if $($o),-$(shell echo $o | tr A-Z a-z) '$($o)'))

test-vm-smoke: init ## a selection of them, about a minute
	@scripts/deps $(VM)
	@$(GO) run ./scripts/test-vm -smoke -limit 10m $(if $(KERNEL),-kernel '$(KERNEL)') $(if $(MODULES),-modules '$(MODULES)')

dockerfiles: build ## the corpus of Dockerfiles, built by naru and by Debian's docker and buildah, compared: [BUILDKIT=directory of buildkitd and buildctl]
	@scripts/deps $(TESTING) docker.io buildah
	$(GO) build -o bin/dockerfiles ./bench/dockerfiles
	unshare -m --propagation private bin/dockerfiles -peers docker,buildah$(if $(BUILDKIT),$(comma)buildkit -buildkit '$(BUILDKIT)') -table bench/dockerfiles/differences.md
	NARU_DOCKERFILES=all $(GO) test -count=1 -timeout 60m -v -run TestNoStaleHit ./bench/dockerfiles

apps: init ## real applications in Go, Node, Python, Java and static pages, built twice and run; downloads a lot
	@scripts/deps $(TESTING) mmdebstrap
	NARU_APPS=all $(GO) test -count=1 -timeout 60m -v ./bench/apps

lint: ## gofmt, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

check: lint test race test-vm-smoke ## what CI runs

bench: build ## side-by-side figures: make bench
	@scripts/deps $(RUNTIME) runc gcc libc6-dev
	@$(GO) run ./bench

# The suite leaks mounts: it gets a mount namespace that goes with it.
oci-validation: build ## the OCI runtime-tools suite against runc and `naru oci`; writes bench/oci/validation.md
	@scripts/deps $(RUNTIME) runc util-linux
	@unshare -m --propagation private $(GO) run ./scripts/ocivalidation -table bench/oci/validation.md

oci-engines: build ## Docker and Podman drive `naru oci`
	@scripts/deps $(TESTING) docker.io podman
	NARU_ENGINES=1 $(GO) test -count=1 -run TestEngines -v ./cli

fuzz: ## every fuzz target for T (30s)
	@for target in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for f in $$(grep -rhoE '^func Fuzz\w+' $$target/*_test.go | cut -c6-); do \
			$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(T),30s) $$target || exit 1; done; done

clean: ## remove what make built
	rm -rf bin $(INIT)
