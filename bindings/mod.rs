// SPDX-License-Identifier: GPL-2.0

//! C functions and constants that `kernel::bindings` lacks.
//!
//! Made by bindgen from `bindings_helper.h` with the kernel's own flags. Types are those of
//! `kernel::bindings`, so that both sides of an abstraction use the same structures.

#![allow(
    clippy::all,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

use crate::abstractions::compat::bindings::*;
use kernel::ffi;

/// `struct nbd_request`, which is packed: the bytes of a request's header.
pub type nbd_request = [u8; 28];

mod uapi;

include!(concat!(env!("RNBD_BINDINGS"), "/generated.rs"));
