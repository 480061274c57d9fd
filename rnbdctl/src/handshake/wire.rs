// SPDX-License-Identifier: GPL-2.0
//! Messages of the handshake, as bytes.

use super::BlockSizes;

/// What every server says first.
pub const MAGIC: [u8; 8] = *b"NBDMAGIC";
/// What a newstyle server says next, and what each option begins with.
pub const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
/// What an oldstyle server says instead.
pub const OLDSTYLE_MAGIC: [u8; 8] = 0x0000_4202_8186_1253_u64.to_be_bytes();
/// What a reply to an option begins with.
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Flags of the greeting, of server and client alike.
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
pub const NO_ZEROES: u16 = 1 << 1;

/// Options (`NBD_OPT_*`).
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const GO: u32 = 7;
}

/// Replies to options (`NBD_REP_*`).
pub mod reply {
    pub const ACK: u32 = 1;
    pub const INFO: u32 = 3;
    /// The bit of all errors.
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;

    /// What an error means.
    pub fn error_name(error: u32) -> String {
        let name = match error & !ERROR {
            2 => "its policy forbids it",
            3 => "it takes the request for invalid",
            4 => "its platform cannot do it",
            7 => "it is shutting down",
            8 => "it wants another block size",
            9 => "the request is too big",
            number => return format!("error {number}"),
        };
        name.to_owned()
    }
}

/// Kinds of information (`NBD_INFO_*`).
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const BLOCK_SIZE: u16 = 3;
}

/// An option with its data.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [&OPTION_MAGIC, &number.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
}

/// The data of NBD_OPT_GO: the export's name, and what else is asked.
pub fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let length = name.len() as u32;
    let count = infos.len() as u16;
    let mut data = [&length.to_be_bytes(), name.as_bytes(), &count.to_be_bytes()[..]].concat();
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

/// What a reply begins with.
pub struct ReplyHeader {
    pub magic: u64,
    pub option: u32,
    pub kind: u32,
    pub length: u32,
}

impl ReplyHeader {
    pub fn parse(bytes: &[u8; 20]) -> ReplyHeader {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        ReplyHeader {
            magic: (u64::from(word(0)) << 32) | u64::from(word(4)),
            option: word(8),
            kind: word(12),
            length: word(16),
        }
    }
}

/// An information of the server's.
#[derive(Debug, PartialEq, Eq)]
pub enum Info {
    Export { size: u64, flags: u16 },
    BlockSize(BlockSizes),
    Other,
}

impl Info {
    /// None if it has not the length that it must have.
    pub fn parse(data: &[u8]) -> Option<Info> {
        let (kind, rest) = data.split_first_chunk()?;
        match u16::from_be_bytes(*kind) {
            info::EXPORT => {
                let (size, flags) = rest.split_first_chunk()?;
                let flags = u16::from_be_bytes(flags.try_into().ok()?);
                Some(Info::Export { size: u64::from_be_bytes(*size), flags })
            }
            info::BLOCK_SIZE => {
                let (minimum, rest) = rest.split_first_chunk()?;
                let (preferred, maximum) = rest.split_first_chunk()?;
                Some(Info::BlockSize(BlockSizes {
                    minimum: u32::from_be_bytes(*minimum),
                    preferred: u32::from_be_bytes(*preferred),
                    maximum: u32::from_be_bytes(maximum.try_into().ok()?),
                }))
            }
            _ => Some(Info::Other),
        }
    }
}
