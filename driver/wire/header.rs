// SPDX-License-Identifier: GPL-2.0

//! Requests as the protocol names them.

use crate::{
    abstractions::block::mq::{Op, Request},
    driver::nbd::Nbd,
    protocol::{
        cookie::Cookie,
        wire::{self, Command, CommandFlags, REQUEST_SIZE},
    },
};

/// The protocol's command for a request, if it has one.
pub(crate) fn command(request: &Request<Nbd>) -> Option<Command> {
    match request.op() {
        Op::Read => Some(Command::Read),
        Op::Write => Some(Command::Write),
        Op::Flush => Some(Command::Flush),
        Op::Discard => Some(Command::Trim),
        Op::WriteZeroes => Some(Command::WriteZeroes),
        Op::Other(_) => None,
    }
}

/// The header of a request, as it goes on the wire.
pub(crate) fn header(request: &Request<Nbd>, cookie: Cookie) -> [u8; REQUEST_SIZE] {
    // What the protocol has no command for was refused.
    let command = command(request).unwrap_or(Command::Flush);
    let has_range = command != Command::Flush;
    wire::Request {
        command,
        flags: CommandFlags {
            fua: request.is_fua(),
            no_hole: request.is_nounmap() && command == Command::WriteZeroes,
        },
        cookie,
        offset: if has_range { request.sector() << 9 } else { 0 },
        length: if has_range { request.bytes() } else { 0 },
    }
    .encode()
}
