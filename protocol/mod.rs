// SPDX-License-Identifier: GPL-2.0

//! What the NBD protocol and the life of an attachment are, apart from any kernel.
//!
//! Pure logic: no kernel API, no allocation, no I/O. The same files are a module of `rnbd.ko` and
//! a crate of their own on the host (`protocol/Cargo.toml`), where they are tested.
//!
//! * [`wire`]: messages of the transmission phase, as bytes.
//! * [`flags`]: transmission flags.
//! * [`geometry`]: sizes and block sizes.
//! * [`cookie`]: what names a request on the wire.
//! * [`end`]: who sees to the end of a generation.
//! * [`fallback`]: which connection a request goes over.
//! * [`netlink`]: names and numbers of the generic netlink family.
//! * [`request`]: the atomic word that gives the right to answer a request.
//! * [`setup`]: phases, owner and socket array of a device.

pub mod cookie;
pub mod end;
pub mod fallback;
pub mod flags;
pub mod geometry;
pub mod netlink;
pub mod request;
pub mod setup;
pub mod wire;
