// SPDX-License-Identifier: GPL-2.0

//! The request that an operation is given.
//!
//! C header: [`include/net/genetlink.h`](srctree/include/net/genetlink.h)

use super::{Attribute, ExtAck, Family, Message};
use crate::{
    abstractions::{capability::Capability, compat::bindings},
    bindings as extra,
};
use kernel::{error::to_result, prelude::*, types::ForeignOwnable};

/// A request (`struct genl_info`), for as long as its operation runs.
///
/// # Invariants
///
/// `skb` and `raw` are those of an operation that runs in this task, of `family`, which is
/// registered for `'a`. `attributes` is the request's table: what is not null in it is a whole
/// attribute, not changed for `'a`.
pub(crate) struct Info<'a, D: ForeignOwnable> {
    skb: *const bindings::sk_buff,
    raw: *mut bindings::genl_info,
    family: &'a Family<D>,
    data: D::Borrowed<'a>,
    attributes: &'a [*mut bindings::nlattr],
}

impl<'a, D: ForeignOwnable + Send + Sync + 'static> Info<'a, D> {
    /// # Safety
    ///
    /// Only for an operation of a `Family<D>`, with what the C side calls it with, while it runs.
    pub(super) unsafe fn from_raw(
        skb: *const bindings::sk_buff,
        raw: *mut bindings::genl_info,
    ) -> Self {
        // SAFETY: By the safety requirement; `Family` begins with the C side's.
        let family = unsafe { &*(*raw).family.cast::<Family<D>>() };
        // SAFETY: As above.
        let table = unsafe { (*raw).attrs };
        let attributes = if table.is_null() || family.attributes() == 0 {
            &[]
        } else {
            // SAFETY: The C side makes it as long as the family's policies are.
            unsafe { core::slice::from_raw_parts(table, family.attributes()) }
        };
        // INVARIANT: By the safety requirement.
        Self {
            skb,
            raw,
            family,
            // SAFETY: An operation runs, so that the family stays registered.
            data: unsafe { family.data() },
            attributes,
        }
    }

    /// What the family was registered with.
    #[inline]
    pub(crate) fn data(&self) -> &D::Borrowed<'a> {
        &self.data
    }

    /// The family that was asked.
    #[inline]
    pub(crate) fn family(&self) -> &'a Family<D> {
        self.family
    }

    /// The command that was sent.
    #[inline]
    pub(crate) fn command(&self) -> u8 {
        // SAFETY: By the type invariant.
        unsafe { (*(*self.raw).genlhdr).cmd }
    }

    /// The port of the socket that the request came from.
    #[inline]
    pub(crate) fn port(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw).snd_portid }
    }

    /// Attribute `number` of the request, if it is there. Of several with one number the last
    /// counts.
    pub(crate) fn get(&self, number: u16) -> Option<Attribute<'a>> {
        let pointer = *self.attributes.get(usize::from(number))?;
        // SAFETY: By the type invariant.
        (!pointer.is_null()).then(|| unsafe { Attribute::from_raw(pointer) })
    }

    /// Attribute `number` of the request; if it is not there `EINVAL`, and the extended ack names
    /// it.
    pub(crate) fn require(&self, number: u16) -> Result<Attribute<'a>> {
        self.get(number).ok_or_else(|| {
            self.ext_ack().set_attr_miss(number, None);
            EINVAL
        })
    }

    /// The request's extended ack.
    #[inline]
    pub(crate) fn ext_ack(&self) -> ExtAck<'a> {
        // SAFETY: By the type invariant. It is used by this task alone while the operation runs,
        // and no reference to it is held.
        unsafe { ExtAck::from_raw((*self.raw).extack, (*self.raw).nlhdr) }
    }

    /// Whether the sender has a capability in the initial user namespace (`netlink_capable`): the
    /// task that made the socket had it, and the one that sends has it.
    #[inline]
    pub(crate) fn netlink_capable(&self, capability: Capability) -> bool {
        // SAFETY: By the type invariant.
        unsafe { bindings::netlink_capable(self.skb, capability.number()) }
    }

    /// Begins a reply, to the same command, with room for `payload` bytes of attributes; see
    /// [`nla_total_size`](super::nla_total_size).
    pub(crate) fn new_reply(&self, payload: usize) -> Result<Message> {
        // SAFETY: By the type invariant.
        let (port, sequence) = unsafe { ((*self.raw).snd_portid, (*self.raw).snd_seq) };
        // SAFETY: The family is valid.
        unsafe {
            Message::new(
                self.family.as_raw(),
                port,
                sequence,
                self.command(),
                payload,
                bindings::GFP_KERNEL,
            )
        }
    }

    /// Sends `message` to the sender. Does not wait for it: `EAGAIN` if its socket is full.
    #[inline]
    pub(crate) fn reply(&self, message: Message) -> Result {
        // SAFETY: By the type invariant. The call takes the message.
        to_result(unsafe { extra::rnbd_helper_genlmsg_reply(message.finish(), self.raw) })
    }
}
