// SPDX-License-Identifier: GPL-2.0
//! Replies that are wrong in themselves: their magic, their error, their length.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{Attack, Fate, SIZE, TARGET, report, run};
use crate::attach::{Setup, with_attached};
use crate::device::{io_errno, open_direct, read_direct};
use crate::server::wire::{REPLY_MAGIC, REQUEST_MAGIC, reply};
use crate::server::{Command, Server, pattern};
use crate::tests::{Context, Test, ours_only};

pub const TESTS: &[Test] = &[
    Test::new("hostile.wrong_magic", "a reply with another magic number drops the connection", wrong_magic)
        .quick(),
    Test::new(
        "hostile.error_values",
        "whatever number stands for the error, the request alone fails",
        error_values,
    ),
    Test::new("hostile.short_then_close", "data that end early are no data", short_then_close),
    Test::new("hostile.too_long", "more data than were asked for are no reply", too_long),
    Test::new("hostile.too_short", "less data than were asked for", too_short),
];

const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

fn wrong_magic(context: &Context) -> Result<()> {
    ours_only(context)?;
    let magics = [
        0,
        !0,
        REQUEST_MAGIC,
        REPLY_MAGIC.swap_bytes(),
        !REPLY_MAGIC,
        REPLY_MAGIC ^ 1,
        REPLY_MAGIC ^ (1 << 31),
        STRUCTURED_MAGIC,
    ];
    run(magics.map(|magic| {
        Attack::read(format!("magic {magic:#010x}"), Fate::Dropped, move |peer, request| {
            let mut bytes = peer.reply(request)?;
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            peer.send(&bytes)
        })
    }))
}

fn error_values(context: &Context) -> Result<()> {
    ours_only(context)?;
    let error = Arc::new(AtomicU32::new(0));
    let theirs = error.clone();
    let server = Server::scripted(SIZE, move |peer| {
        while let Some(request) = peer.request()? {
            let error = theirs.load(Ordering::SeqCst);
            match request.command {
                Command::Disconnect => break,
                Command::Read if error != 0 && TARGET.contains(&request.offset) => {
                    peer.send(&reply(REPLY_MAGIC, error, request.cookie))?;
                }
                _ => peer.serve(&request)?,
            }
        }
        Ok(())
    })?;
    // All errno there are, in both byte orders, and what is near the ends of 8, 16, 31 and 32 bits.
    let mut values: Vec<u32> = (1..=133).flat_map(|errno: u32| [errno, errno.swap_bytes()]).collect();
    values.extend([255, 256, 511, 512, 4095, 4096, 65535, 65536, i32::MAX as u32, 1 << 31, !0, !4095]);
    with_attached(&server, Setup::for_server(&server), |_| {
        let direct = open_direct("/dev/nbd0")?;
        for value in &values {
            error.store(*value, Ordering::SeqCst);
            let got = read_direct(&direct, TARGET.start, 4096).map_err(|error| io_errno(&error));
            let want = match value {
                1 => Errno::EREMOTEIO,
                28 => Errno::ENOSPC,
                108 => Errno::ENODEV,
                _ => Errno::EIO,
            };
            ensure!(got.is_err_and(|got| got == want), "a read refused with {value} did not give {want}");
            let data = read_direct(&direct, 0, 4096)?;
            ensure!(data[..] == pattern::data(0, 4096, pattern::ORIGINAL), "wrong data after error {value}");
        }
        ensure!(server.accepted() == 1 && server.open_connections() == 1, "the connection was dropped");
        Ok(())
    })?;
    report(values.len());
    Ok(())
}

fn short_then_close(context: &Context) -> Result<()> {
    ours_only(context)?;
    // Of a reply of 16 + 65536 bytes.
    run([1, 15, 16, 17, 16 + 512, 16 + 4096, 16 + 65535].map(|length| {
        Attack::read(format!("{length} bytes of a reply"), Fate::Dropped, move |peer, request| {
            let bytes = peer.reply(request)?;
            peer.send(&bytes[..length])?;
            peer.shut_down(std::net::Shutdown::Both)
        })
    }))
}

fn too_long(context: &Context) -> Result<()> {
    ours_only(context)?;
    let on_read = [1, 15, 16, 17, 512, 65536].map(|more| {
        Attack::read(format!("{more} bytes too many"), Fate::DroppedAfter, move |peer, request| {
            let mut bytes = peer.reply(request)?;
            bytes.resize(bytes.len() + more, 0x67);
            peer.send(&bytes)?;
            if more < 16 {
                // Not enough to be looked at: the end comes within them.
                peer.shut_down(std::net::Shutdown::Both)?;
            }
            Ok(())
        })
    });
    let after_write =
        Attack::write("data after the reply to a write", 65536, Fate::DroppedAfter, |peer, request| {
            let mut bytes = peer.reply(request)?;
            bytes.extend(pattern::data(request.offset, 4096, 1));
            peer.send(&bytes)
        });
    let after_error = Attack::read("data after an error", Fate::DroppedAfter, |peer, request| {
        // Right for the one that was asked: a read that is refused has no data.
        let data = peer.reply(request)?.split_off(16);
        peer.send(&reply(REPLY_MAGIC, 0, request.cookie))?;
        peer.send(&data)?;
        peer.send(&data)
    });
    run(on_read.into_iter().chain([after_write, after_error]))
}

fn too_short(context: &Context) -> Result<()> {
    ours_only(context)?;
    run([
        Attack::read("512 bytes less, and nothing more", Fate::Dropped, |peer, request| {
            let bytes = peer.reply(request)?;
            peer.send(&bytes[..bytes.len() - 512])?;
            peer.stall()
        })
        .timeout(),
        Attack::read("no data at all, and nothing more", Fate::Dropped, |peer, request| {
            let bytes = peer.reply(request)?;
            peer.send(&bytes[..16])?;
            peer.stall()
        })
        .timeout(),
    ])
}
