// SPDX-License-Identifier: GPL-2.0

//! nbd's tracepoints: those that nbd.ko has, and one each for phases and dead connections.
//!
//! C headers: [`include/trace/events/nbd.h`](srctree/include/trace/events/nbd.h), `rnbd_events.h`

use super::block::mq::{Operations, Request};
use crate::bindings as extra;
use kernel::{bindings, prelude::*};

/// Declares a function for each tracepoint, as `kernel::tracepoint::declare_trace` does for those
/// of the kernel itself.
macro_rules! tracepoints {
    ($(fn $name:ident($($arg:ident: $type:ty),*) = $point:ident, $body:ident;)*) => {$(
        /// Hits the tracepoint, if it is enabled.
        ///
        /// # Safety
        ///
        /// Pointers are valid for the call.
        #[inline(always)]
        unsafe fn $name($($arg: $type),*) {
            #[cfg(CONFIG_TRACEPOINTS)]
            {
                // SAFETY: The key is part of a tracepoint of this module.
                let enabled = unsafe {
                    kernel::jump_label::static_branch_unlikely!(
                        extra::$point,
                        bindings::tracepoint,
                        key
                    )
                };
                if enabled {
                    // SAFETY: By the safety requirement.
                    unsafe { extra::$body($($arg),*) };
                }
            }
            #[cfg(not(CONFIG_TRACEPOINTS))]
            let _ = ($($arg),*);
        }
    )*};
}

tracepoints! {
    fn nbd_send_request(header: *mut extra::nbd_request, index: i32, rq: *mut bindings::request)
        = __tracepoint_nbd_send_request, rust_do_trace_nbd_send_request;
    fn nbd_header_sent(rq: *mut bindings::request, cookie: u64)
        = __tracepoint_nbd_header_sent, rust_do_trace_nbd_header_sent;
    fn nbd_payload_sent(rq: *mut bindings::request, cookie: u64)
        = __tracepoint_nbd_payload_sent, rust_do_trace_nbd_payload_sent;
    fn nbd_header_received(rq: *mut bindings::request, cookie: u64)
        = __tracepoint_nbd_header_received, rust_do_trace_nbd_header_received;
    fn nbd_payload_received(rq: *mut bindings::request, cookie: u64)
        = __tracepoint_nbd_payload_received, rust_do_trace_nbd_payload_received;
    fn nbd_phase(index: u32, generation: u64, phase: *const kernel::ffi::c_char)
        = __tracepoint_nbd_phase, rust_do_trace_nbd_phase;
    fn nbd_connection_dead(index: u32, connection: u32, reason: *const kernel::ffi::c_char)
        = __tracepoint_nbd_connection_dead, rust_do_trace_nbd_connection_dead;
}

/// `nbd_send_request`: a header is about to be sent. A BPF program may change it.
#[inline]
pub(crate) fn send_request<T: Operations>(
    header: &mut [u8; size_of::<extra::nbd_request>()],
    index: u32,
    rq: &Request<T>,
) {
    let header = header.as_mut_ptr().cast();
    // SAFETY: Both are valid; a header is plain bytes, which may lie anywhere.
    unsafe { nbd_send_request(header, index as i32, rq.as_raw()) };
}

/// `nbd_header_sent`: a header was sent.
#[inline]
pub(crate) fn header_sent<T: Operations>(rq: &Request<T>, cookie: u64) {
    // SAFETY: The request is valid.
    unsafe { nbd_header_sent(rq.as_raw(), cookie) };
}

/// `nbd_payload_sent`: all of a request was sent.
#[inline]
pub(crate) fn payload_sent<T: Operations>(rq: &Request<T>, cookie: u64) {
    // SAFETY: The request is valid.
    unsafe { nbd_payload_sent(rq.as_raw(), cookie) };
}

/// `nbd_header_received`: a reply's header came.
#[inline]
pub(crate) fn header_received<T: Operations>(rq: &Request<T>, cookie: u64) {
    // SAFETY: The request is valid.
    unsafe { nbd_header_received(rq.as_raw(), cookie) };
}

/// `nbd_payload_received`: all of a reply came.
#[inline]
pub(crate) fn payload_received<T: Operations>(rq: &Request<T>, cookie: u64) {
    // SAFETY: The request is valid.
    unsafe { nbd_payload_received(rq.as_raw(), cookie) };
}

/// `nbd_phase`: a generation has come to a phase.
#[inline]
pub(crate) fn phase(index: u32, generation: u64, phase: &CStr) {
    // SAFETY: The string is valid.
    unsafe { nbd_phase(index, generation, phase.as_char_ptr()) };
}

/// `nbd_connection_dead`: a connection died.
#[inline]
pub(crate) fn connection_dead(index: u32, connection: u32, reason: &CStr) {
    // SAFETY: The string is valid.
    unsafe { nbd_connection_dead(index, connection, reason.as_char_ptr()) };
}
