// SPDX-License-Identifier: GPL-2.0

//! Messages of the NBD transmission phase, as bytes.
//!
//! Reference: the NBD protocol text, sections "Transmission phase" and "Error values"; C header
//! `include/uapi/linux/nbd.h`. All integers are big-endian.

use super::cookie::Cookie;

/// First four bytes of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

/// First four bytes of every simple reply.
pub const REPLY_MAGIC: u32 = 0x6744_6698;

/// Bytes of a request header on the wire.
pub const REQUEST_SIZE: usize = 28;

/// Bytes of a simple reply header on the wire.
pub const REPLY_SIZE: usize = 16;

/// What a request asks of the server (`NBD_CMD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read `length` bytes; they follow the reply.
    Read,
    /// Write `length` bytes; they follow the request.
    Write,
    /// End the session. Has no reply.
    Disconnect,
    /// Put all completed writes on stable storage.
    Flush,
    /// The range is not needed any more.
    Trim,
    /// Write zeroes to the range.
    WriteZeroes,
}

impl Command {
    /// The command's number on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
        }
    }

    /// The command's name, as log lines give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim/discard",
            Self::WriteZeroes => "write zeroes",
        }
    }

    /// Whether the command changes what the export holds.
    pub const fn modifies(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

/// Flags of one request (`NBD_CMD_FLAG_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandFlags {
    /// Answer only once the data is on stable storage.
    pub fua: bool,
    /// Write zeroes without making a hole.
    pub no_hole: bool,
}

impl CommandFlags {
    /// Bit of [`fua`](Self::fua).
    pub const FUA: u16 = 1 << 0;
    /// Bit of [`no_hole`](Self::no_hole).
    pub const NO_HOLE: u16 = 1 << 1;

    const fn bits(self) -> u16 {
        (if self.fua { Self::FUA } else { 0 }) | (if self.no_hole { Self::NO_HOLE } else { 0 })
    }
}

/// One request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// How it is asked.
    pub flags: CommandFlags,
    /// What the reply will name.
    pub cookie: Cookie,
    /// Offset in the export, in bytes; 0 for commands that have no range.
    pub offset: u64,
    /// Length in bytes; 0 for commands that have no range.
    pub length: u32,
}

impl Request {
    /// The request that ends a session. It has no reply, so its cookie means nothing.
    pub const DISCONNECT: Self = Self {
        command: Command::Disconnect,
        flags: CommandFlags {
            fua: false,
            no_hole: false,
        },
        cookie: Cookie::NONE,
        offset: 0,
        length: 0,
    };

    /// The header as it goes on the wire.
    pub fn encode(&self) -> [u8; REQUEST_SIZE] {
        let [m0, m1, m2, m3] = REQUEST_MAGIC.to_be_bytes();
        let [f0, f1] = self.flags.bits().to_be_bytes();
        let [t0, t1] = self.command.number().to_be_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.cookie.to_wire().to_be_bytes();
        let [o0, o1, o2, o3, o4, o5, o6, o7] = self.offset.to_be_bytes();
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [
            m0, m1, m2, m3, f0, f1, t0, t1, c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5,
            o6, o7, l0, l1, l2, l3,
        ]
    }
}

/// An error that a server may put in a reply ("Error values").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerError {
    /// 1: operation not permitted.
    NotPermitted,
    /// 5: input/output error.
    Io,
    /// 12: cannot allocate memory.
    NoMemory,
    /// 22: invalid argument.
    Invalid,
    /// 28: no space left on device.
    NoSpace,
    /// 75: value too large.
    Overflow,
    /// 95: operation not supported.
    NotSupported,
    /// 108: server is shutting down.
    ShuttingDown,
    /// A number outside the protocol's list.
    Unknown(u32),
}

impl ServerError {
    const fn from_wire(number: u32) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Self::NotPermitted),
            5 => Some(Self::Io),
            12 => Some(Self::NoMemory),
            22 => Some(Self::Invalid),
            28 => Some(Self::NoSpace),
            75 => Some(Self::Overflow),
            95 => Some(Self::NotSupported),
            108 => Some(Self::ShuttingDown),
            other => Some(Self::Unknown(other)),
        }
    }

    /// The number that stood in the reply.
    pub const fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::ShuttingDown => 108,
            Self::Unknown(number) => number,
        }
    }
}

/// One simple reply header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request that is answered, as the server says.
    pub cookie: Cookie,
    /// Why the request failed, or that it did not.
    pub result: Result<(), ServerError>,
}

/// The bytes are no simple reply: their magic number is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongMagic(pub u32);

impl Reply {
    /// Reads a reply header.
    pub fn decode(bytes: &[u8; REPLY_SIZE]) -> Result<Self, WrongMagic> {
        let [m0, m1, m2, m3, e0, e1, e2, e3, c0, c1, c2, c3, c4, c5, c6, c7] = *bytes;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != REPLY_MAGIC {
            return Err(WrongMagic(magic));
        }
        Ok(Self {
            cookie: Cookie::from_wire(u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7])),
            result: match ServerError::from_wire(u32::from_be_bytes([e0, e1, e2, e3])) {
                None => Ok(()),
                Some(error) => Err(error),
            },
        })
    }
}
