// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers that the kernel crate lacks.
//!
//! Laid out as `rust/kernel/` would hold them: each file is a candidate patch. All of the module's
//! `unsafe` is here.

#![deny(unsafe_op_in_unsafe_fn)]

pub(crate) mod block;
pub(crate) mod bottom_half;
pub(crate) mod bvec;
pub(crate) mod capability;
pub(crate) mod compat;
pub(crate) mod deadline;
pub(crate) mod iov;
pub(crate) mod kthread;
pub(crate) mod memalloc;
pub(crate) mod module_param;
pub(crate) mod module_ref;
pub(crate) mod net;
pub(crate) mod pid;
pub(crate) mod ratelimit;
pub(crate) mod task;
pub(crate) mod trace;
pub(crate) mod work;
pub(crate) mod workqueue;
