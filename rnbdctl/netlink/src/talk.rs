// SPDX-License-Identifier: GPL-2.0
//! Requests and answers on a generic netlink socket, with what the kernel says beside the errno.

use std::fmt::Debug;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netlink_packet_core::{
    Emitable, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, Nla, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{from_bytes, value};

static PATIENCE: OnceLock<Duration> = OnceLock::new();

/// How long an answer is awaited in this process. For ever, unless this was called: an operation may have to wait for
/// the end of the last attachment.
pub fn set_patience(bound: Duration) {
    // What was said first holds.
    let _ = PATIENCE.set(bound);
}

/// Attributes of an error message (`NLMSGERR_ATTR_*`).
const ERROR_TEXT: u16 = 1;
const ERROR_OFFSET: u16 = 2;
const ERROR_MISSING: u16 = 5;

/// Bytes of a message's header, and of a generic netlink one's behind it.
const HEADER: usize = 16;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error itself.
    pub errno: Errno,
    /// The extended ack's message; empty if there is none.
    pub text: String,
    /// Where in the request the attribute is that is wrong.
    pub offset: Option<u32>,
    /// Which attribute is missing.
    pub missing: Option<u32>,
}

/// A socket that asks for extended acks without the request in them.
pub fn bound_socket() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_GENERIC).context("open a netlink socket")?;
    socket.bind_auto().context("bind a netlink socket")?;
    socket.set_ext_ack(true).context("NETLINK_EXT_ACK")?;
    socket.set_cap_ack(true).context("NETLINK_CAP_ACK")?;
    Ok(socket)
}

/// Waits until something can be read.
pub fn readable(socket: &Socket, bound: Duration) -> Result<bool> {
    let bound = PollTimeout::try_from(bound).context("a wait that is too long")?;
    Ok(poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], bound)? > 0)
}

enum Part<F> {
    Message(F),
    /// The end of the answer, with the reason of a refusal.
    End(Result<(), Refusal>),
}

/// One datagram's messages. Those of the family alone, if one is named.
pub fn received<F>(socket: &Socket, family: Option<u16>) -> Result<Vec<(NetlinkHeader, F)>>
where
    F: Debug + ParseableParametrized<[u8], GenlHeader>,
{
    let mut messages = Vec::new();
    for (header, part) in datagram(socket)? {
        match part {
            Part::Message(message) if family.is_none_or(|family| header.message_type == family) => {
                messages.push((header, message));
            }
            Part::Message(_) => bail!("a message of another family, {header:?}"),
            Part::End(end) => bail!("an acknowledgement that nobody asked for: {end:?}"),
        }
    }
    Ok(messages)
}

fn datagram<F>(socket: &Socket) -> Result<Vec<(NetlinkHeader, Part<F>)>>
where
    F: Debug + ParseableParametrized<[u8], GenlHeader>,
{
    let (bytes, sender) = socket.recv_from_full().context("receive from netlink")?;
    ensure!(sender.port_number() == 0, "a message that is not the kernel's");
    let mut parts = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let length = NetlinkBuffer::new_checked(rest)?.length() as usize;
        let (one, behind) = rest.split_at(length);
        let message = NetlinkMessage::<GenlMessage<F>>::deserialize(one)?;
        let part = match message.payload {
            NetlinkPayload::InnerMessage(message) => Part::Message(message.payload),
            NetlinkPayload::Error(error) => Part::End(refusal(&error)?),
            NetlinkPayload::Done(done) => Part::End(match done.code {
                0 => Ok(()),
                code => bail!("a dump ended with {}", Errno::from_raw(-code)),
            }),
            other => bail!("netlink says {other:?}"),
        };
        parts.push((message.header, part));
        rest = behind.get(length.next_multiple_of(4) - length..).unwrap_or_default();
    }
    Ok(parts)
}

fn refusal(error: &ErrorMessage) -> Result<Result<(), Refusal>> {
    let Some(code) = error.code else { return Ok(Ok(())) };
    let mut refusal =
        Refusal { errno: Errno::from_raw(-code.get()), text: String::new(), offset: None, missing: None };
    // The request's header, and attributes behind it.
    for attribute in from_bytes(error.header.get(HEADER..).unwrap_or_default())? {
        let value = value(&attribute);
        let number = || Ok::<_, anyhow::Error>(u32::from_ne_bytes(value[..].try_into()?));
        match attribute.kind() {
            ERROR_TEXT => refusal.text = String::from_utf8(value)?.trim_end_matches('\0').to_owned(),
            ERROR_OFFSET => refusal.offset = Some(number()?),
            ERROR_MISSING => refusal.missing = Some(number()?),
            _ => {}
        }
    }
    Ok(Err(refusal))
}

/// Sends a request, with further flags, and takes all that is answered to it.
pub fn exchange<F>(socket: &Socket, family: u16, flags: u16, request: F) -> Result<Result<Vec<F>, Refusal>>
where
    F: Clone + Debug + Emitable + GenlFamily + ParseableParametrized<[u8], GenlHeader>,
{
    static SEQUENCE: AtomicU32 = AtomicU32::new(1);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let mut request = GenlMessage::from_payload(request);
    request.set_resolved_family_id(family);
    let mut header = NetlinkHeader::default();
    // A dump ends by itself, and is not acknowledged too.
    let ends = if flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
    header.flags = NLM_F_REQUEST | ends | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    send(socket, &bytes)?;
    let mut replies = Vec::new();
    loop {
        if let Some(patience) = PATIENCE.get() {
            let seconds = patience.as_secs();
            ensure!(readable(socket, *patience)?, "netlink did not answer for {seconds} s");
        }
        for (header, part) in datagram(socket)? {
            ensure!(header.sequence_number == sequence, "an answer to another request: {header:?}");
            match part {
                Part::Message(reply) => replies.push(reply),
                Part::End(end) => return Ok(end.map(|()| replies)),
            }
        }
    }
}

fn send(socket: &Socket, bytes: &[u8]) -> Result<()> {
    let sent = socket.send_to(bytes, &SocketAddr::new(0, 0), 0).context("send to netlink")?;
    ensure!(sent == bytes.len(), "{sent} of {} bytes were sent", bytes.len());
    Ok(())
}
