// SPDX-License-Identifier: GPL-2.0

//! Messages against the layout in the NBD protocol text ("Transmission phase").

use proptest::prelude::*;
use rnbd_protocol::{
    cookie::Cookie,
    wire::{Command, CommandFlags, Reply, Request, ServerError, WrongMagic, REPLY_SIZE},
};

const COMMANDS: [(Command, u16); 6] = [
    (Command::Read, 0),
    (Command::Write, 1),
    (Command::Disconnect, 2),
    (Command::Flush, 3),
    (Command::Trim, 4),
    (Command::WriteZeroes, 6),
];

/// A field of the header, by its place in the protocol text: 32 bits of magic, 16 of flags, 16 of
/// type, 64 of cookie, 64 of offset, 32 of length.
fn field(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len]
        .iter()
        .fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

fn any_request() -> impl Strategy<Value = (Request, u16)> {
    (
        0..COMMANDS.len(),
        any::<(bool, bool)>(),
        any::<(u32, u32)>(),
        any::<(u64, u32)>(),
    )
        .prop_map(
            |(command, (fua, no_hole), (sequence, tag), (offset, length))| {
                let (command, number) = COMMANDS[command];
                let request = Request {
                    command,
                    flags: CommandFlags { fua, no_hole },
                    cookie: Cookie::new(sequence, tag),
                    offset,
                    length,
                };
                (request, number)
            },
        )
}

proptest! {
    #[test]
    fn request_header_is_laid_out_as_the_protocol_says((request, number) in any_request()) {
        let bytes = request.encode();
        prop_assert_eq!(bytes.len(), 28);
        prop_assert_eq!(field(&bytes, 0, 4), 0x25609513);
        let flags = u64::from(request.flags.fua) | (u64::from(request.flags.no_hole) << 1);
        prop_assert_eq!(field(&bytes, 4, 2), flags);
        prop_assert_eq!(field(&bytes, 6, 2), u64::from(number));
        prop_assert_eq!(field(&bytes, 8, 8), request.cookie.to_wire());
        prop_assert_eq!(field(&bytes, 16, 8), request.offset);
        prop_assert_eq!(field(&bytes, 24, 4), u64::from(request.length));
    }

    #[test]
    fn reply_is_read_back(cookie: u64, error: u32) {
        let mut bytes = [0; REPLY_SIZE];
        bytes[..4].copy_from_slice(&0x67446698_u32.to_be_bytes());
        bytes[4..8].copy_from_slice(&error.to_be_bytes());
        bytes[8..].copy_from_slice(&cookie.to_be_bytes());
        let reply = Reply::decode(&bytes).unwrap();
        prop_assert_eq!(reply.cookie.to_wire(), cookie);
        match reply.result {
            Ok(()) => prop_assert_eq!(error, 0),
            Err(known) => prop_assert_eq!(known.number(), error),
        }
    }

    #[test]
    fn any_other_magic_is_refused(mut bytes: [u8; REPLY_SIZE]) {
        if bytes[..4] == 0x67446698_u32.to_be_bytes() {
            bytes[0] ^= 1;
        }
        let magic = u32::try_from(field(&bytes, 0, 4)).unwrap();
        prop_assert_eq!(Reply::decode(&bytes), Err(WrongMagic(magic)));
    }

    /// Whatever comes from the wire is read without a panic, and to a reply's very bytes or an
    /// error's: what the server did not send is nowhere in it.
    #[test]
    fn any_bytes_are_read(bytes: [u8; REPLY_SIZE], with_magic: bool) {
        let mut bytes = bytes;
        if with_magic {
            bytes[..4].copy_from_slice(&0x67446698_u32.to_be_bytes());
        }
        let mut back = [0; REPLY_SIZE];
        match Reply::decode(&bytes) {
            Ok(reply) => {
                let error = reply.result.err().map_or(0, ServerError::number);
                back[..4].copy_from_slice(&0x67446698_u32.to_be_bytes());
                back[4..8].copy_from_slice(&error.to_be_bytes());
                back[8..].copy_from_slice(&reply.cookie.to_wire().to_be_bytes());
            }
            Err(WrongMagic(magic)) => {
                back[..4].copy_from_slice(&magic.to_be_bytes());
                back[4..].copy_from_slice(&bytes[4..]);
            }
        }
        prop_assert_eq!(back, bytes);
    }

    /// A stream that is cut into replies anywhere: as in the receiver, but without a socket.
    #[test]
    fn any_stream_is_read(stream: Vec<u8>) {
        for start in 0..stream.len() {
            for bytes in stream[start..].chunks_exact(REPLY_SIZE) {
                let Ok(bytes) = bytes.try_into() else { continue };
                let _ = Reply::decode(bytes);
            }
        }
    }

    #[test]
    fn cookie_keeps_its_parts(sequence: u32, tag: u32) {
        let cookie = Cookie::from_wire(Cookie::new(sequence, tag).to_wire());
        prop_assert_eq!((cookie.sequence(), cookie.tag()), (sequence, tag));
    }
}

#[test]
fn error_numbers_are_those_of_the_protocol() {
    let known = [
        (1, ServerError::NotPermitted),
        (5, ServerError::Io),
        (12, ServerError::NoMemory),
        (22, ServerError::Invalid),
        (28, ServerError::NoSpace),
        (75, ServerError::Overflow),
        (95, ServerError::NotSupported),
        (108, ServerError::ShuttingDown),
        (9999, ServerError::Unknown(9999)),
    ];
    for (number, error) in known {
        let mut bytes = [0; REPLY_SIZE];
        bytes[..4].copy_from_slice(&0x67446698_u32.to_be_bytes());
        bytes[7] = (number & 0xff) as u8;
        bytes[6] = (number >> 8) as u8;
        assert_eq!(Reply::decode(&bytes).unwrap().result, Err(error));
    }
}

#[test]
fn disconnect_has_no_range() {
    let bytes = Request::DISCONNECT.encode();
    assert_eq!(field(&bytes, 4, 4), 2);
    assert!(bytes[8..].iter().all(|&byte| byte == 0));
}
