# The jobs of the project. Each installs what it needs and this machine lacks.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench fuzz build release install format

# Shared between clones, so that a fresh one does not build the world again.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tram/target

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo:  ## Build Tramontane, start it on this machine and watch it do its main job
	@scripts/setup demo
	@scripts/demo

test:  ## Run every test
	@scripts/setup test
	@scripts/test

check:  ## Format, lints, licences, documentation, generated files
	@scripts/setup check
	@scripts/check

bench:  ## Measure: all figures of SPEC.md, or one with NAME=edge
	@scripts/setup bench
	@bench/run $(NAME)

fuzz:  ## Feed what reads strangers' bytes with nonsense, each for 20 seconds
	@scripts/setup fuzz
	@fuzz/smoke 20

build:  ## Build the binary for development
	@scripts/setup build
	cargo build --locked --bin tram

release:  ## Build the binary for use
	@scripts/setup build
	cargo build --locked --release --bin tram
	@echo $(CARGO_TARGET_DIR)/release/tram

install:  ## Build the binary, put it into /usr/local/bin and install what it needs at run time
	@scripts/setup install
	cargo build --locked --release --bin tram
	$(if $(filter-out 0,$(shell id -u)),sudo) install -m 0755 $(CARGO_TARGET_DIR)/release/tram /usr/local/bin/tram

format:  ## Format all code
	cargo fmt --all
