// SPDX-License-Identifier: GPL-2.0
//! The transmission phase on the wire, as the NBD protocol text has it (simple replies).

use std::io::{self, Read};

pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const REPLY_MAGIC: u32 = 0x6744_6698;

/// Command flags.
pub mod flags {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    Unknown(u16),
}

impl From<u16> for Command {
    fn from(value: u16) -> Self {
        match value {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            other => Command::Unknown(other),
        }
    }
}

/// A request as it came, on connection number `connection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub connection: usize,
    pub command: Command,
    pub flags: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    /// Reads a request header; None at the end of the stream.
    pub fn read(stream: &mut impl Read, connection: usize) -> io::Result<Option<Request>> {
        let mut header = [0; 28];
        match stream.read(&mut header[..1])? {
            0 => return Ok(None),
            _ => stream.read_exact(&mut header[1..])?,
        }
        let u16_at = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| (u32::from(u16_at(at)) << 16) | u32::from(u16_at(at + 2));
        let u64_at = |at: usize| (u64::from(u32_at(at)) << 32) | u64::from(u32_at(at + 4));
        if u32_at(0) != REQUEST_MAGIC {
            return Err(io::Error::other(format!("request with magic {:#x}", u32_at(0))));
        }
        Ok(Some(Request {
            connection,
            command: u16_at(6).into(),
            flags: u16_at(4),
            cookie: u64_at(8),
            offset: u64_at(16),
            length: u32_at(24),
        }))
    }
}

/// A simple reply's header.
pub fn reply(magic: u32, error: u32, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&magic.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// A request to read, as a client sends it.
pub fn read_request(cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}
