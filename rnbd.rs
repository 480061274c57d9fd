// SPDX-License-Identifier: GPL-2.0

//! rnbd: a network block device driver that cannot get stuck.
//!
//! A drop-in replacement for `nbd.ko`: same major, device names, ioctls and module parameters. See
//! `docs/design.md` for the model. From the top there are:
//!
//! * `driver`: what nbd is. No unsafe code.
//! * `protocol`: the protocol and the state machines, apart from any kernel. No unsafe code.
//! * `abstractions`: safe wrappers that the kernel crate lacks. All unsafe code.
//! * `bindings`: C functions that `kernel::bindings` lacks.
//!
//! * `kunit`: tests of the above that run in a kernel that has KUnit, and are not there in others.

// Nothing that user space or a server sends may lead to a panic.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use kernel::prelude::*;

mod abstractions;
mod bindings;
#[forbid(unsafe_code)]
mod driver;
// A test may panic: so it fails.
#[allow(clippy::restriction)]
#[cfg(CONFIG_KUNIT = "y")]
mod kunit;
// A crate of its own on the host: what is public there may be unused here.
#[allow(dead_code, unreachable_pub)]
#[forbid(unsafe_code)]
mod protocol;

module! {
    type: driver::Module,
    name: "rnbd",
    authors: ["The rnbd developers"],
    description: "Network block device that cannot get stuck",
    license: "GPL",
    // Looking for the family loads the module, as it does nbd.ko.
    alias: ["net-pf-16-proto-16-family-nbd"],
}

/// This module (`THIS_MODULE`), as the owner of what it registers.
const fn this_module() -> &'static ThisModule {
    abstractions::compat::module::this_module::<driver::Module>()
}

module_params! {
    module: "rnbd";
    /// How many devices there are from the start.
    nbds_max: 16, "number of network block devices to initialize (default: 16)";
    /// How many partitions a device can have; rounded up to a power of two less one.
    max_part: 16, "number of partitions per device (default: 16)";
    /// How many hardware queues a device has from the start.
    pre_defined_connections: 1,
        "number of connections for devices pre-created at module load (default: 1)";
}
