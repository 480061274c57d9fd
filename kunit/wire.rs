// SPDX-License-Identifier: GPL-2.0

//! Messages as bytes (`protocol/wire.rs`), with the kernel's compiler and its checks.

use crate::protocol::{
    cookie::Cookie,
    wire::{Command, CommandFlags, Reply, Request, ServerError, WrongMagic, REPLY_SIZE},
};
use kernel::prelude::*;

fn reply(magic: u32, error: u32, cookie: u64) -> [u8; REPLY_SIZE] {
    let mut bytes = [0; REPLY_SIZE];
    bytes[..4].copy_from_slice(&magic.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// `NBD_REQUEST_MAGIC` and `NBD_REPLY_MAGIC`, as the protocol's text has them.
const ASKED: u32 = 0x2560_9513;
const ANSWERED: u32 = 0x6744_6698;

#[kunit_tests(rnbd_wire)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_the_protocol_says() {
        let request = Request {
            command: Command::WriteZeroes,
            flags: CommandFlags {
                fua: true,
                no_hole: true,
            },
            cookie: Cookie::new(0x0102_0304, 0x0506_0708),
            offset: 0x1112_1314_1516_1718,
            length: 0x2122_2324,
        };
        let want = [
            0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14,
            0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24,
        ];
        assert!(request.encode() == want);
    }

    #[test]
    fn commands_have_their_numbers() {
        let numbers = [
            (Command::Read, 0),
            (Command::Write, 1),
            (Command::Disconnect, 2),
            (Command::Flush, 3),
            (Command::Trim, 4),
            (Command::WriteZeroes, 6),
        ];
        for (command, number) in numbers {
            assert_eq!(command.number(), number);
        }
        let bytes = Request::DISCONNECT.encode();
        assert!(bytes[..8] == [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]);
        assert!(bytes[8..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_reply_is_read() {
        let read = Reply::decode(&reply(ANSWERED, 0, 0x0102_0304_0506_0708));
        let want = Reply {
            cookie: Cookie::new(0x0102_0304, 0x0506_0708),
            result: Ok(()),
        };
        assert!(read == Ok(want));
    }

    #[test]
    fn every_error_number_is_kept() {
        for number in Iterator::chain(1..=200, [u32::MAX, 1 << 31]) {
            let error = Reply::decode(&reply(ANSWERED, number, 0)).map(|reply| reply.result);
            assert!(matches!(error, Ok(Err(error)) if error.number() == number));
        }
        let no_space = Reply::decode(&reply(ANSWERED, 28, 0)).map(|reply| reply.result);
        assert!(no_space == Ok(Err(ServerError::NoSpace)));
    }

    #[test]
    fn another_magic_is_no_reply() {
        for magic in [0, ASKED, ANSWERED.swap_bytes(), ANSWERED ^ 1, u32::MAX] {
            assert!(Reply::decode(&reply(magic, 0, 0)) == Err(WrongMagic(magic)));
        }
    }
}
