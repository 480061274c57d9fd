// SPDX-License-Identifier: GPL-2.0

//! Replies and notifications.
//!
//! C header: [`include/net/netlink.h`](srctree/include/net/netlink.h)

use super::attribute::{padded, HEADER};
use crate::{abstractions::compat::bindings, bindings as extra};
use core::{marker::PhantomData, mem::ManuallyDrop, ptr::NonNull};
use kernel::{error::to_result, ffi, prelude::*};

/// Largest payload of an attribute: its length has 16 bits.
const MAX_PAYLOAD: usize = u16::MAX as usize - HEADER;

/// Largest message there can be any use for: more than a socket takes.
const MAX_MESSAGE: usize = 1 << 30;

/// Bytes of a message that an attribute takes which holds `payload` bytes.
#[inline]
pub(crate) const fn nla_total_size(payload: usize) -> usize {
    padded(payload.saturating_add(HEADER))
}

/// A generic netlink message that is being made.
///
/// # Invariants
///
/// `skb` is this value's, and `header` is that of the message in it.
pub(crate) struct Message {
    skb: NonNull<bindings::sk_buff>,
    header: NonNull<ffi::c_void>,
}

impl Message {
    /// Allocates a message with room for `payload` bytes of attributes, and begins it. Sleeps.
    ///
    /// # Safety
    ///
    /// `family` must be valid.
    pub(super) unsafe fn new(
        family: *const bindings::genl_family,
        port: u32,
        sequence: u32,
        command: u8,
        payload: usize,
        gfp: bindings::gfp_t,
    ) -> Result<Self> {
        if payload > MAX_MESSAGE {
            return Err(EMSGSIZE);
        }
        // SAFETY: Any size may be asked for.
        let skb = unsafe { bindings::genlmsg_new(payload, gfp) };
        let skb = NonNull::new(skb).ok_or(ENOMEM)?;
        // SAFETY: The buffer is new; the family is valid by the safety requirement.
        let header =
            unsafe { bindings::genlmsg_put(skb.as_ptr(), port, sequence, family, 0, command) };
        let Some(header) = NonNull::new(header) else {
            // SAFETY: It was allocated above, and is not used any more.
            unsafe { bindings::nlmsg_free(skb.as_ptr()) };
            return Err(EMSGSIZE);
        };
        // INVARIANT: Both are from the calls above.
        Ok(Self { skb, header })
    }

    /// Ends the message, and hands it to the caller to send or free.
    pub(super) fn finish(self) -> *mut bindings::sk_buff {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant.
        unsafe { bindings::genlmsg_end(this.skb.as_ptr(), this.header.as_ptr()) };
        this.skb.as_ptr()
    }
}

impl Drop for Message {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::nlmsg_free(self.skb.as_ptr()) };
    }
}

// SAFETY: A message has one owner, and can be used and freed anywhere.
unsafe impl Send for Message {}

/// Attributes being put into an attribute.
///
/// Unless [`end`](Self::end) is called, the attribute and what is in it are taken back.
///
/// # Invariants
///
/// `skb` is that of a message that is borrowed for `'a`, and `start` the attribute in it that was
/// begun last and is not ended.
pub(crate) struct Nest<'a> {
    skb: NonNull<bindings::sk_buff>,
    start: NonNull<bindings::nlattr>,
    _message: PhantomData<&'a mut Message>,
}

impl Nest<'_> {
    /// Ends the attribute.
    ///
    /// # Errors
    ///
    /// `EMSGSIZE`, and the attribute is taken back, if more is in it than its length can say.
    pub(crate) fn end(self) -> Result {
        // SAFETY: By the type invariant.
        let result =
            unsafe { extra::rnbd_helper_nla_nest_end_safe(self.skb.as_ptr(), self.start.as_ptr()) };
        if result < 0 {
            return to_result(result);
        }
        let _ = ManuallyDrop::new(self);
        Ok(())
    }
}

impl Drop for Nest<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_nla_nest_cancel(self.skb.as_ptr(), self.start.as_ptr()) };
    }
}

mod private {
    use super::{bindings, NonNull};

    /// What attributes can be put into.
    ///
    /// # Safety
    ///
    /// `skb` must be that of a message which is borrowed as long as `self` is, with nothing begun
    /// behind `self` that is not ended.
    pub(crate) unsafe trait Sink {
        fn skb(&mut self) -> NonNull<bindings::sk_buff>;
    }
}

// SAFETY: The message is exclusively borrowed; so there is no `Nest` of it.
unsafe impl private::Sink for Message {
    #[inline]
    fn skb(&mut self) -> NonNull<bindings::sk_buff> {
        self.skb
    }
}

// SAFETY: The nest is exclusively borrowed; so there is no `Nest` in it.
unsafe impl private::Sink for Nest<'_> {
    #[inline]
    fn skb(&mut self) -> NonNull<bindings::sk_buff> {
        self.skb
    }
}

/// Puts attributes into a [`Message`] or a [`Nest`].
///
/// Everything fails with `EMSGSIZE` when the room is used up, and then has put nothing.
pub(crate) trait PutAttributes: private::Sink {
    /// Puts bytes.
    fn put_bytes(&mut self, number: u16, payload: &[u8]) -> Result {
        if payload.len() > MAX_PAYLOAD {
            return Err(EMSGSIZE);
        }
        let skb = self.skb().as_ptr();
        // SAFETY: The buffer is that of a message, and the payload is readable.
        to_result(unsafe {
            bindings::nla_put(
                skb,
                number.into(),
                payload.len() as i32,
                payload.as_ptr().cast(),
            )
        })
    }

    /// Puts a number of 8 bits.
    #[inline]
    fn put_u8(&mut self, number: u16, value: u8) -> Result {
        self.put_bytes(number, &value.to_ne_bytes())
    }

    /// Puts a number of 16 bits.
    #[inline]
    fn put_u16(&mut self, number: u16, value: u16) -> Result {
        self.put_bytes(number, &value.to_ne_bytes())
    }

    /// Puts a number of 32 bits.
    #[inline]
    fn put_u32(&mut self, number: u16, value: u32) -> Result {
        self.put_bytes(number, &value.to_ne_bytes())
    }

    /// Puts a number of 64 bits; readers must not expect it to be aligned.
    #[inline]
    fn put_u64(&mut self, number: u16, value: u64) -> Result {
        self.put_bytes(number, &value.to_ne_bytes())
    }

    /// Puts a string, with its NUL.
    #[inline]
    fn put_string(&mut self, number: u16, value: &CStr) -> Result {
        self.put_bytes(number, value.to_bytes_with_nul())
    }

    /// Puts an attribute that holds nothing.
    #[inline]
    fn put_flag(&mut self, number: u16) -> Result {
        self.put_bytes(number, &[])
    }

    /// Begins an attribute that holds attributes, and is marked so (`NLA_F_NESTED`).
    #[inline]
    fn nest(&mut self, number: u16) -> Result<Nest<'_>> {
        self.nest_noflag(number | bindings::NLA_F_NESTED as u16)
    }

    /// Begins an attribute that holds attributes, and is not marked so: for interfaces from before
    /// there was the mark.
    fn nest_noflag(&mut self, number: u16) -> Result<Nest<'_>> {
        let skb = self.skb();
        // SAFETY: The buffer is that of a message.
        let start =
            unsafe { extra::rnbd_helper_nla_nest_start_noflag(skb.as_ptr(), number.into()) };
        // INVARIANT: It was begun now, and the message is borrowed as long as the nest is.
        Ok(Nest {
            skb,
            start: NonNull::new(start).ok_or(EMSGSIZE)?,
            _message: PhantomData,
        })
    }
}

impl<T: private::Sink> PutAttributes for T {}
