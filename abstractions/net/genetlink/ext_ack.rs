// SPDX-License-Identifier: GPL-2.0

//! Extended acks: the message that goes with an error, if user space asks for it
//! (`NETLINK_EXT_ACK`).
//!
//! C header: [`include/linux/netlink.h`](srctree/include/linux/netlink.h)

use super::Attribute;
use crate::abstractions::compat::bindings;
use core::{marker::PhantomData, ops::Range};
use kernel::{
    fmt::{self, Write as _},
    prelude::*,
};

/// Bytes of a formatted message, with the NUL behind it.
const ROOM: usize = bindings::NETLINK_MAX_FMTMSG_LEN as usize;

/// What is reported of a request, beside its errno (`struct netlink_ext_ack`).
///
/// A later message replaces an earlier one.
///
/// # Invariants
///
/// `raw` is null, or valid for `'a`, and used by this task alone. `request` are the addresses of
/// the request's bytes.
pub(crate) struct ExtAck<'a> {
    raw: *mut bindings::netlink_ext_ack,
    request: Range<usize>,
    _lifetime: PhantomData<&'a ()>,
}

impl<'a> ExtAck<'a> {
    /// # Safety
    ///
    /// `raw` must be null, or valid for `'a` and used by this task alone. `header` must be valid:
    /// the request's.
    pub(super) unsafe fn from_raw(
        raw: *mut bindings::netlink_ext_ack,
        header: *const bindings::nlmsghdr,
    ) -> Self {
        let begin = header as usize;
        // SAFETY: By the safety requirement.
        let len = unsafe { (*header).nlmsg_len } as usize;
        // INVARIANT: By the safety requirement.
        Self {
            raw,
            request: begin..begin.saturating_add(len),
            _lifetime: PhantomData,
        }
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::netlink_ext_ack {
        self.raw
    }

    /// Sets the message to `text`, formatted and cut off after 79 bytes (`NL_SET_ERR_MSG_FMT`).
    pub(crate) fn set_msg(&self, text: fmt::Arguments<'_>) {
        // Formatted here first: what is formatted may itself set a message.
        let mut line = Line {
            bytes: [0; ROOM],
            used: 0,
        };
        // An error means that it was cut off.
        let _ = line.write_fmt(text);
        if self.raw.is_null() {
            return;
        }
        // SAFETY: By the type invariant; the message ends in NUL, for `Line` leaves the last byte
        // alone, and lives as long as what points to it.
        unsafe {
            let buffer = &raw mut (*self.raw)._msg_buf;
            buffer.cast::<[u8; ROOM]>().write(line.bytes);
            (*self.raw)._msg = buffer.cast();
            bindings::do_trace_netlink_extack(buffer.cast());
        }
    }

    /// Sets the message to `text`, however long it is (`NL_SET_ERR_MSG`).
    pub(crate) fn set_static_msg(&self, text: &'static CStr) {
        if self.raw.is_null() {
            return;
        }
        // SAFETY: By the type invariant. The text lives as long as the module, and the
        // family is not unregistered while the message is read.
        unsafe {
            (*self.raw)._msg = text.as_char_ptr();
            bindings::do_trace_netlink_extack(text.as_char_ptr());
        }
    }

    /// Sets the message as [`set_msg`](Self::set_msg) does, and returns `error`.
    #[must_use]
    pub(crate) fn err_msg(&self, error: Error, text: fmt::Arguments<'_>) -> Error {
        self.set_msg(text);
        error
    }

    /// Points to the attribute that is wrong (`NL_SET_BAD_ATTR`). One of another request is
    /// ignored.
    pub(crate) fn set_bad_attr(&self, attribute: Attribute<'_>) {
        let pointer = attribute.as_ptr();
        if self.raw.is_null() || !self.request.contains(&(pointer as usize)) {
            return;
        }
        // SAFETY: By the type invariant.
        unsafe {
            (*self.raw).bad_attr = pointer;
            (*self.raw).policy = core::ptr::null_mut();
        }
    }

    /// Names an attribute that is missing, in `nest` or at the top (`NL_SET_ERR_ATTR_MISS`).
    pub(crate) fn set_attr_miss(&self, number: u16, nest: Option<Attribute<'_>>) {
        let nest = nest
            .map(Attribute::as_ptr)
            .filter(|&nest| self.request.contains(&(nest as usize)));
        if self.raw.is_null() {
            return;
        }
        // SAFETY: By the type invariant.
        unsafe {
            (*self.raw).miss_type = number;
            (*self.raw).miss_nest = nest.unwrap_or(core::ptr::null());
        }
    }
}

/// Text that is cut off, between characters, when the room is used up. The last byte stays NUL.
struct Line {
    bytes: [u8; ROOM],
    used: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut end = text.len().min((ROOM - 1).saturating_sub(self.used));
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let used = self.used.saturating_add(end);
        let from = text.as_bytes().get(..end).ok_or(fmt::Error)?;
        let room = self.bytes.get_mut(self.used..).ok_or(fmt::Error)?;
        // Of the same length, as the compiler sees: nothing is left that could panic.
        room.get_mut(..end).ok_or(fmt::Error)?.copy_from_slice(from);
        self.used = used;
        if end < text.len() {
            return Err(fmt::Error);
        }
        Ok(())
    }
}
