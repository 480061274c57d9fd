# SPDX-License-Identifier: GPL-2.0
# What one can do here. Each target calls a script of toolchain/ that can be called by itself as well.
# (What Kbuild builds is in Kbuild.)

.DEFAULT_GOAL := module
.PHONY: module demo test soak kunit quick shell bench profile paths debug-kernel host-test check fmt fmt-check clippy doc clean prune distclean selftest miri help

# DEBUG=1: the debug kernel instead of the stock one.
debug := $(if $(DEBUG),--debug)

module: ## build rnbd.ko for the stock kernel; KDIR=DIR: for the kernel with that build directory
	@toolchain/module "$(KDIR)"

demo: ## boot that kernel and show the driver at work with real programs
	@toolchain/qemu demo

test: ## run all tests, on the host and in the machine; T="NAME GLOB": only those; DEBUG=1: in the debug kernel
	@toolchain/test $(debug) $(T)

soak: ## run what can go on for ever, ten minutes of each; T="NAME GLOB": only those; DEBUG=1: in the debug kernel
	@toolchain/soak $(debug) $(T)

kunit: ## run the tests that are part of the module, in the debug kernel
	@toolchain/qemu kunit

quick: ## after an edit: rebuild, boot, run the quick tests; T="NAME GLOB": only those
	@toolchain/qemu $(debug) test --quick $(T)

shell: ## a shell in the machine, with rnbd.ko loaded; DEBUG=1: in the debug kernel
	@toolchain/qemu $(debug) shell

bench: ## measure rnbd.ko against nbd.ko, write docs/benchmarks/; QUICK=1: in five minutes
	@toolchain/bench $(if $(QUICK),--quick)

profile: ## run a job of the benchmark under perf: JOB=randread-4k-qd32-1conn-unix; DRIVER=nbd; CALLS=1: with callers
	@toolchain/profile $(if $(DRIVER),--driver $(DRIVER)) $(if $(CALLS),--calls) "$(JOB)"

paths: ## print where kernel, modules, rnbd.ko, nbd.ko and the toolchain root are; DEBUG=1: the debug kernel too
	@toolchain/paths $(debug)

debug-kernel: ## build the kernel with KASAN, lockdep and the like, if there is none; print its directory
	@toolchain/debug-kernel

host-test: ## run the tests that need no kernel
	@toolchain/host-test

miri: ## run the tests of protocol/ under miri, with a nightly toolchain of rustup's
	@toolchain/miri

selftest: ## provoke each kind of failure in a machine, and see that the harness tells it
	@toolchain/qemu selftest

check: ## formatting, lints, documentation, no unsafe code where there must be none
	@toolchain/check

fmt: ## format all Rust code
	@toolchain/enter toolchain/inside/check-fmt --write

fmt-check: ## is all Rust code formatted?
	@toolchain/check fmt

clippy: ## lints, for the module with the kernel's own set
	@toolchain/check clippy

doc: ## documentation of all Rust code, without a warning
	@toolchain/check doc

clean: ## remove what was built from this checkout
	@toolchain/clean

prune: ## remove toolchain roots and kernels that this checkout no longer uses
	@toolchain/clean --unused

distclean: ## remove the whole cache: toolchain root, kernel, builds
	@toolchain/clean --all

help: ## this list
	@sed -n 's/^\([a-z-]*\): ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo 'KERNEL=7.3 chooses another kernel series, MIRROR=URL another place for packages, XDG_CACHE_HOME=DIR for the cache.'
