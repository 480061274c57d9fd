# SPDX-License-Identifier: GPL-2.0
# What one can do here. Each target calls a script of toolchain/ that can be called by itself as well.
# (What Kbuild builds is in Kbuild.)

.DEFAULT_GOAL := module
.PHONY: $(shell sed -n 's/^\([a-z-]*\): \#\#.*/\1/p' $(firstword $(MAKEFILE_LIST)))

# DEBUG=1: the debug kernel instead of the stock one. DEBUG=kcsan: the one that looks for data races.
debug := $(if $(DEBUG),--debug$(if $(filter kcsan,$(DEBUG)),=kcsan))

module: ## build rnbd.ko for the stock kernel; KDIR=DIR: for the kernel with that build directory
	@toolchain/module "$(KDIR)"

demo: ## boot that kernel and show the driver at work with real programs
	@toolchain/qemu demo

test: ## run all tests, on the host and in the machine; T="NAME GLOB": only those; DEBUG=1: in the debug kernel
	@toolchain/test $(debug) $(T)

soak: ## run what can go on for ever, ten minutes of each; T="NAME GLOB": only those; DEBUG=1 or kcsan: in that kernel
	@toolchain/soak $(debug) $(T)

kunit: ## run the tests that are part of the module, in the debug kernel
	@toolchain/qemu kunit

quick: ## after an edit: rebuild, boot, run the quick tests; T="NAME GLOB": only those
	@toolchain/qemu $(debug) test --quick $(T)

kernels: ## build, boot and run the quick tests for each kernel we support, then renew README's table; CHECK=1: see that it is so
	@toolchain/kernels $(if $(CHECK),--check)

shell: ## a shell in the machine, with rnbd.ko loaded; DEBUG=1: in the debug kernel
	@toolchain/qemu $(debug) shell

vng: ## run the quick tests as kernel CI does, by virtme-ng, and print KTAP; T="NAME GLOB": those; KDIR=DIR: that kernel
	@toolchain/vng $(if $(KDIR),--kdir "$(KDIR)") $(T)

bench: ## measure rnbd.ko against nbd.ko, write docs/benchmarks/; QUICK=1: in five minutes
	@toolchain/bench $(if $(QUICK),--quick)

profile: ## run a job of the benchmark under perf: JOB=randread-4k-qd32-1conn-unix; DRIVER=nbd; CALLS=1: with callers
	@toolchain/profile $(if $(DRIVER),--driver $(DRIVER)) $(if $(CALLS),--calls) "$(JOB)"

paths: ## print where kernel, modules, rnbd.ko, nbd.ko and the toolchain root are; DEBUG=1: the debug kernel too
	@toolchain/paths $(debug)

debug-kernel: ## build the kernel with KASAN, lockdep and the like, if there is none; print its directory; DEBUG=kcsan: the other
	@toolchain/debug-kernel $(filter kcsan,$(DEBUG))

rnbdctl: ## build rnbdctl, its manual pages and completions; print the directory that holds them
	@toolchain/rnbdctl

host-test: ## run the tests that need no kernel
	@toolchain/host-test

fuzz: ## fuzz what protocol/ makes of a server's replies, for a minute; SECONDS=N: as long as that
	@toolchain/fuzz $(SECONDS)

miri: ## run the tests of protocol/ under miri, with a nightly toolchain of rustup's
	@toolchain/miri

rfc: ## make a series of patches against the kernel's source, try it, print its directory
	@toolchain/rfc

kunit-tree: ## run the KUnit suites with the driver in the kernel's tree, by the kernel's kunit.py
	@toolchain/rfc --kunit

selftest: ## provoke each kind of failure in a machine, and see that the harness tells it
	@toolchain/qemu selftest

deb: ## build the Debian packages, print their paths
	@toolchain/deb

deb-test: ## install the package in a Debian system of its own, boot that, see that rnbd is there; purge it again
	@toolchain/deb-test

install: ## install rnbd.ko for the running kernel, or for that of KDIR=DIR; DESTDIR=DIR: below it
	@toolchain/install "$(KDIR)" "$(DESTDIR)"

uninstall: ## remove it again
	@toolchain/install --remove "$(KDIR)" "$(DESTDIR)"

check: ## formatting, lints, documentation, no unsafe code and no import where there must be none
	@toolchain/check

arrows: ## print which files of driver/ import which, room by room
	@toolchain/enter toolchain/inside/check-layers --list

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
	@echo 'KERNEL=7.2 chooses another kernel series, SUITE=forky one built with that suite'\''s compilers (toolchain/series has both),'
	@echo 'MIRROR=URL another place for packages, XDG_CACHE_HOME=DIR for the cache.'
