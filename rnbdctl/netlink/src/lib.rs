// SPDX-License-Identifier: GPL-2.0
//! A client of the kernel's generic netlink family `nbd`: its commands, and its notifications. nbd.ko has it, and
//! rnbd.ko.

#![forbid(unsafe_code)]

mod family;
mod talk;

use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, Nla, NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};
use netlink_sys::Socket;

pub use family::{Family, NAME, NlaType, Operation};
pub use talk::{Refusal, set_patience};
use talk::{bound_socket, exchange, readable, received};

/// The commands of `uapi/linux/nbd-netlink.h`.
pub mod command {
    /// Attaches a device to sockets.
    pub const CONNECT: u8 = 1;
    /// Detaches a device.
    pub const DISCONNECT: u8 = 2;
    /// Changes an attached device, or gives it other sockets.
    pub const RECONFIGURE: u8 = 3;
    /// A notification: a connection of a device is dead.
    pub const LINK_DEAD: u8 = 4;
    /// Which devices there are, and which are in use.
    pub const STATUS: u8 = 5;
}

/// The attributes of `uapi/linux/nbd-netlink.h`.
pub mod attr {
    /// `u32`: the number of the device.
    pub const INDEX: u16 = 1;
    /// `u64`: the size of the export.
    pub const SIZE_BYTES: u16 = 2;
    /// `u64`: the logical block size.
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    /// `u64`: seconds that a request may take.
    pub const TIMEOUT: u16 = 4;
    /// `u64`: the transmission flags of the export.
    pub const SERVER_FLAGS: u16 = 5;
    /// `u64`: what the driver is to do by itself, [`client_flag`](super::client_flag).
    pub const CLIENT_FLAGS: u16 = 6;
    /// Nested: the sockets.
    pub const SOCKETS: u16 = 7;
    /// `u64`: seconds that requests wait for a connection when all are dead.
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    /// Nested: the devices that STATUS tells of.
    pub const DEVICE_LIST: u16 = 9;
    /// String: which backend it is.
    pub const BACKEND_IDENTIFIER: u16 = 10;
    /// The highest that nbd.ko has.
    pub const MAX: u16 = BACKEND_IDENTIFIER;

    // rnbd's own.
    /// Flag: sockets are for live connections too.
    pub const HANDOVER: u16 = 64;
    /// `u32`, in a reply: how many of the sockets were taken.
    pub const SOCKETS_TAKEN: u16 = 65;
    /// `u32`, in a reply: how many were not.
    pub const SOCKETS_LEFT: u16 = 66;

    /// Nested, in the list of sockets.
    pub const SOCK_ITEM: u16 = 1;
    /// `u32`, in an item: the file descriptor.
    pub const SOCK_FD: u16 = 1;
    /// Nested, in the list of devices.
    pub const DEVICE_ITEM: u16 = 1;
    /// `u32`, in an item: the number of the device.
    pub const DEVICE_INDEX: u16 = 1;
    /// `u8`, in an item: whether it is in use.
    pub const DEVICE_CONNECTED: u16 = 2;
}

/// Bits of [`attr::CLIENT_FLAGS`], of `uapi/linux/nbd.h`.
pub mod client_flag {
    /// The device goes when it is disconnected.
    pub const DESTROY_ON_DISCONNECT: u64 = 1 << 0;
    /// It is disconnected when it is closed for the last time.
    pub const DISCONNECT_ON_CLOSE: u64 = 1 << 1;
}

/// An attribute without a value.
pub fn attr_flag(number: u16) -> DefaultNla {
    DefaultNla::new(number, vec![])
}

/// An attribute with a `u8`.
pub fn attr_u8(number: u16, value: u8) -> DefaultNla {
    DefaultNla::new(number, vec![value])
}

/// An attribute with a `u32`.
pub fn attr_u32(number: u16, value: u32) -> DefaultNla {
    DefaultNla::new(number, value.to_ne_bytes().to_vec())
}

/// An attribute with a `u64`.
pub fn attr_u64(number: u16, value: u64) -> DefaultNla {
    DefaultNla::new(number, value.to_ne_bytes().to_vec())
}

/// An attribute with a string, which the kernel wants ended by NUL.
pub fn attr_string(number: u16, value: &str) -> DefaultNla {
    DefaultNla::new(number, [value.as_bytes(), b"\0"].concat())
}

/// An attribute with attributes in it.
pub fn attr_nested(number: u16, inner: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(number, to_bytes(inner))
}

/// A list of sockets, as CONNECT and RECONFIGURE want it.
pub fn attr_sockets(sockets: &[RawFd]) -> DefaultNla {
    let item = |fd: &RawFd| attr_nested(attr::SOCK_ITEM, &[attr_u32(attr::SOCK_FD, *fd as u32)]);
    attr_nested(attr::SOCKETS, &sockets.iter().map(item).collect::<Vec<_>>())
}

/// Attributes as they go over the socket.
pub fn to_bytes(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// What is in an attribute, or in a message.
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<DefaultNla>> {
    let mut attributes = Vec::new();
    for attribute in NlasIterator::new(bytes) {
        attributes.push(DefaultNla::parse(&attribute?)?);
    }
    Ok(attributes)
}

/// What an attribute holds.
pub fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

/// A message of the family: its command, and its attributes' bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// One of [`command`].
    pub command: u8,
    /// Its attributes.
    pub payload: Vec<u8>,
}

impl Message {
    /// The attribute with this number; an error if there is not exactly one.
    pub fn only(&self, number: u16) -> Result<Vec<u8>> {
        match &from_bytes(&self.payload)?[..] {
            [attribute] if attribute.kind() == number => Ok(value(attribute)),
            others => bail!("attribute {number} alone was expected, not {others:?}"),
        }
    }
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        NAME
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Message { command: header.cmd, payload: buffer.to_vec() })
    }
}

/// What the driver says to a command: replies, or a refusal.
pub type Answer<T> = Result<T, Refusal>;

/// A device as STATUS tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The number of the device.
    pub index: u32,
    /// 1 if it is in use. What that means differs between the drivers.
    pub connected: u8,
}

/// A socket, and the number that the kernel has given to the family.
pub struct Client {
    socket: Socket,
    family: u16,
}

impl Client {
    /// Looks for the family, and opens a socket.
    pub fn open() -> Result<Client> {
        let family = Family::find()?.context("there is no generic netlink family nbd")?;
        Client::of(&family)
    }

    /// Opens a socket for a family that was found before.
    pub fn of(family: &Family) -> Result<Client> {
        Ok(Client { socket: bound_socket()?, family: family.id })
    }

    /// The socket, to wait for it.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends a command with these attributes, and takes the answer.
    pub fn call(&self, command: u8, attributes: &[DefaultNla]) -> Result<Answer<Vec<Message>>> {
        self.call_bytes(command, 0, &to_bytes(attributes))
    }

    /// The same with attributes as bytes, which need not be well formed, and more flags of the header.
    pub fn call_bytes(&self, command: u8, flags: u16, payload: &[u8]) -> Result<Answer<Vec<Message>>> {
        let message = Message { command, payload: payload.to_vec() };
        exchange(&self.socket, self.family, flags, message)
    }

    /// CONNECT: attaches a device to sockets, the first free one if none is named. Returns which.
    pub fn connect(
        &self,
        index: Option<u32>,
        size: u64,
        sockets: &[RawFd],
        options: &[DefaultNla],
    ) -> Result<Answer<u32>> {
        let mut attributes: Vec<_> = index.map(|index| attr_u32(attr::INDEX, index)).into_iter().collect();
        attributes.push(attr_u64(attr::SIZE_BYTES, size));
        attributes.extend_from_slice(options);
        attributes.push(attr_sockets(sockets));
        let replies = match self.call(command::CONNECT, &attributes)? {
            Ok(replies) => replies,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let [reply] = &replies[..] else { bail!("CONNECT was answered with {replies:?}") };
        ensure!(reply.command == command::CONNECT, "CONNECT was answered with {reply:?}");
        let index = reply.only(attr::INDEX)?;
        Ok(Ok(u32::from_ne_bytes(index[..].try_into()?)))
    }

    /// DISCONNECT.
    pub fn disconnect(&self, index: u32) -> Result<Answer<()>> {
        let answer = self.call(command::DISCONNECT, &[attr_u32(attr::INDEX, index)])?;
        Ok(answer.map(drop))
    }

    /// RECONFIGURE: gives a device new sockets, or other settings. Returns the replies, which nbd.ko does not send.
    pub fn reconfigure(
        &self,
        index: u32,
        sockets: &[RawFd],
        options: &[DefaultNla],
    ) -> Result<Answer<Vec<Message>>> {
        let mut attributes = vec![attr_u32(attr::INDEX, index)];
        attributes.extend_from_slice(options);
        if !sockets.is_empty() {
            attributes.push(attr_sockets(sockets));
        }
        self.call(command::RECONFIGURE, &attributes)
    }

    /// STATUS of one device, or of all.
    pub fn status(&self, index: Option<u32>) -> Result<Answer<Vec<Status>>> {
        let index: Vec<_> = index.map(|index| attr_u32(attr::INDEX, index)).into_iter().collect();
        Ok(match self.call(command::STATUS, &index)? {
            Ok(replies) => Ok(statuses(&replies)?),
            Err(refusal) => Err(refusal),
        })
    }
}

/// The devices in the reply to STATUS.
pub fn statuses(replies: &[Message]) -> Result<Vec<Status>> {
    let [reply] = replies else { bail!("STATUS was answered with {replies:?}") };
    ensure!(reply.command == command::STATUS, "STATUS was answered with {reply:?}");
    let mut devices = Vec::new();
    for item in from_bytes(&reply.only(attr::DEVICE_LIST)?)? {
        ensure!(item.kind() == attr::DEVICE_ITEM, "{item:?} is no item of the list of devices");
        let fields = from_bytes(&value(&item))?;
        let [index, connected] = &fields[..] else { bail!("a device is {fields:?}") };
        ensure!(
            (index.kind(), connected.kind()) == (attr::DEVICE_INDEX, attr::DEVICE_CONNECTED),
            "a device is {fields:?}"
        );
        let [connected] = value(connected)[..] else { bail!("{connected:?} is no u8") };
        devices.push(Status { index: u32::from_ne_bytes(value(index)[..].try_into()?), connected });
    }
    Ok(devices)
}

/// Listens to the family's multicast group.
pub struct Listener {
    socket: Socket,
    family: u16,
}

impl Listener {
    /// Joins the group.
    pub fn open() -> Result<Listener> {
        let family = Family::find()?.context("there is no generic netlink family nbd")?;
        let group = family.groups.iter().find(|(name, _)| name == family::GROUP);
        let (_, group) = group.with_context(|| format!("the family has no group {}", family::GROUP))?;
        let socket = bound_socket()?;
        socket.add_membership(*group).context("join the multicast group")?;
        Ok(Listener { socket, family: family.id })
    }

    /// The socket, to wait for it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What comes next, if anything comes within `bound`.
    pub fn next(&self, bound: Duration) -> Result<Option<Message>> {
        if !readable(&self.socket, bound)? {
            return Ok(None);
        }
        let messages = received::<Message>(&self.socket, Some(self.family))?;
        let [(_, message)] = &messages[..] else { bail!("one notification was expected, not {messages:?}") };
        Ok(Some(message.clone()))
    }
}
