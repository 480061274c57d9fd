// SPDX-License-Identifier: GPL-2.0

//! Tests that run in the kernel, when a module built for a kernel with `CONFIG_KUNIT=y` is loaded.
//!
//! What `protocol/` does is proven on the host; here it runs on the kernel's own processes, atomics
//! and locks. What [`crate::abstractions`] promise can be seen here alone.
//!
//! They are apart from what they test, for KUnit's macros write code that is forbidden in `driver/`
//! and `protocol/`.

mod bvec;
mod cookie;
mod disk;
mod disk_requests;
mod fallback;
mod fixture;
mod genetlink;
mod geometry;
mod kthread;
mod netlink;
mod netlink_client;
mod pid;
mod request;
mod setup;
mod setup_race;
mod socket;
mod socket_pair;
mod staging;
mod test_disk;
mod wire;
mod work;
