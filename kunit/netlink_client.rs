// SPDX-License-Identifier: GPL-2.0

//! A client of generic netlink in the kernel: messages as bytes, as user space would send them.

use super::socket_pair::settle;
use crate::abstractions::compat::{bindings, error::code::EOPNOTSUPP};
use core::ptr::{null, null_mut};
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
};

/// `AF_NETLINK`, `SOCK_RAW`, `NETLINK_GENERIC`; `SOL_NETLINK`, `NETLINK_EXT_ACK`: numbers of the
/// ABI.
const NETLINK: i32 = 16;
const RAW: i32 = 3;
const GENERIC: i32 = 16;
const LEVEL: i32 = 270;
const EXT_ACK: i32 = 11;

/// `NLM_F_REQUEST | NLM_F_ACK`, `NLMSG_ERROR`, `NLA_F_NESTED`.
const ASK: u16 = 1 | 4;
const ACK: u16 = 2;
const NESTED: u16 = 1 << 15;

/// Bytes of the two headers in front of attributes.
const HEADERS: usize = 20;

/// More than any answer has here.
const ROOM: usize = 8192;

/// A message to be sent, or attributes to be put into one.
pub(super) struct Bytes(pub(super) KVec<u8>);

impl Bytes {
    pub(super) fn new() -> Self {
        Self(KVec::new())
    }

    /// Adds an attribute, padded.
    pub(super) fn attribute(mut self, number: u16, payload: &[u8]) -> Result<Self> {
        let len = (payload.len() + 4) as u16;
        for part in [&len.to_ne_bytes()[..], &number.to_ne_bytes(), payload] {
            self.0.extend_from_slice(part, GFP_KERNEL)?;
        }
        while self.0.len() % 4 != 0 {
            self.0.push(0, GFP_KERNEL)?;
        }
        Ok(self)
    }

    /// Adds an attribute that holds attributes, and is marked so.
    pub(super) fn nest(self, number: u16, inner: Self) -> Result<Self> {
        self.attribute(number | NESTED, &inner.0)
    }
}

/// What came back for a message.
pub(super) struct Answer {
    /// The errno of the acknowledgement, negative, or 0.
    pub(super) error: i32,
    /// Attributes of the reply, if there was one.
    pub(super) reply: Option<KVec<u8>>,
    /// Everything that came.
    all: KVec<u8>,
}

impl Answer {
    /// Whether `text` is somewhere in what came: in the extended acknowledgement, say.
    pub(super) fn says(&self, text: &str) -> bool {
        self.all
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    }
}

/// A socket, with a file: what its opener was allowed is looked up there.
///
/// # Invariants
///
/// `socket` is a netlink socket, and `file` its file, which this value releases.
pub(super) struct Client {
    socket: *mut bindings::socket,
    file: *mut bindings::file,
}

/// A message without address or control data.
fn header() -> bindings::msghdr {
    // SAFETY: All of its fields are integers, pointers that may be null, and unions of these.
    unsafe { core::mem::zeroed() }
}

impl Client {
    pub(super) fn new() -> Result<Self> {
        let mut socket = null_mut();
        // SAFETY: There is room for the result.
        to_result(unsafe { bindings::sock_create(NETLINK, RAW, GENERIC, &mut socket) })?;
        // SAFETY: The socket was made above. If it gets no file it is released by this.
        let file = from_err_ptr(unsafe { bindings::sock_alloc_file(socket, 0, null()) })?;
        // INVARIANT: They were made above.
        let this = Self { socket, file };
        let mut on = 1_i32;
        let mut value: bindings::sockptr_t = pin_init::zeroed();
        value.__bindgen_anon_1.kernel = (&raw mut on).cast();
        value.set_is_kernel(true);
        // SAFETY: By the type invariant; the option is an integer in the kernel's memory.
        to_result(unsafe {
            let set = (*(*socket).ops).setsockopt.ok_or(EOPNOTSUPP)?;
            set(socket, LEVEL, EXT_ACK, value, size_of::<i32>() as u32)
        })?;
        Ok(this)
    }

    /// Sends a command of a family, and collects what comes back: the C side answers before this
    /// returns.
    pub(super) fn ask(&self, family: u16, command: u8, attributes: &Bytes) -> Result<Answer> {
        let mut message = KVec::new();
        let len = (HEADERS + attributes.0.len()) as u32;
        for part in [
            &len.to_ne_bytes()[..],
            &family.to_ne_bytes(),
            &ASK.to_ne_bytes(),
            &[0; 8],
            &[command, 1, 0, 0],
            &attributes.0,
        ] {
            message.extend_from_slice(part, GFP_KERNEL)?;
        }
        let mut header = header();
        let mut vec = bindings::kvec {
            iov_base: message.as_mut_ptr().cast(),
            iov_len: message.len(),
        };
        // SAFETY: By the type invariant; the vector describes the message.
        let sent = unsafe {
            bindings::kernel_sendmsg(self.socket, &mut header, &mut vec, 1, message.len())
        };
        to_result(sent)?;
        self.collect(family)
    }

    fn collect(&self, family: u16) -> Result<Answer> {
        let mut answer = Answer {
            error: 1,
            reply: None,
            all: KVec::new(),
        };
        // The acknowledgement comes last.
        while answer.error == 1 {
            let message = self.receive()?;
            let kind = message.get(4..6).ok_or(EIO)?;
            if *kind == ACK.to_ne_bytes() {
                let error = *message
                    .get(16..)
                    .and_then(|rest| rest.first_chunk())
                    .ok_or(EIO)?;
                answer.error = i32::from_ne_bytes(error);
            } else if *kind == family.to_ne_bytes() {
                let mut reply = KVec::new();
                reply.extend_from_slice(message.get(HEADERS..).ok_or(EIO)?, GFP_KERNEL)?;
                answer.reply = Some(reply);
            }
            answer.all.extend_from_slice(&message, GFP_KERNEL)?;
        }
        Ok(answer)
    }

    fn receive(&self) -> Result<KVec<u8>> {
        let mut room = KVec::from_elem(0_u8, ROOM, GFP_KERNEL)?;
        let mut header = header();
        let mut vec = bindings::kvec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: ROOM,
        };
        // SAFETY: By the type invariant; the vector describes the room. What has not come does not
        // come any more: MSG_DONTWAIT.
        let came =
            unsafe { bindings::kernel_recvmsg(self.socket, &mut header, &mut vec, 1, ROOM, 0x40) };
        to_result(came)?;
        room.truncate(came as usize);
        Ok(room)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the socket goes with its file.
        unsafe { bindings::fput(self.file) };
        settle();
    }
}
