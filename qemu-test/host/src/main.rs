// SPDX-License-Identifier: GPL-2.0
//! `rnbd-qemu`: boots a kernel in QEMU and runs rnbd's tests, demo or a shell in it.

fn main() {}
