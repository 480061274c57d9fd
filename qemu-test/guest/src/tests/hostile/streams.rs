// SPDX-License-Identifier: GPL-2.0
//! Right replies that come in odd pieces, or not at all; requests that are read in an odd way, or not at all.

use std::net::Shutdown;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Attack, Fate, SIZE, TARGET, report, run};
use crate::attach::{Setup, with_attached};
use crate::device::{open_direct, read_direct};
use crate::server::wire::{REPLY_MAGIC, reply};
use crate::server::{Command, Server, Transport, pattern};
use crate::tests::{Context, Test, ours_only};

pub const TESTS: &[Test] = &[
    Test::new("hostile.early_reply", "a reply to a write that has not been sent yet", early_reply),
    Test::new("hostile.split", "a reply in two pieces, split at every byte", split),
    Test::new("hostile.glued", "many replies in one piece, in any order", glued),
    Test::new("hostile.stall", "nothing more comes before, inside and after a reply", stall).limit(120),
    Test::new("hostile.reset", "a reset before, inside and after a reply", reset),
    Test::new("hostile.half_close", "the server closes one direction", half_close),
    Test::new("hostile.never_reads", "the server reads nothing more", never_reads),
    Test::new("hostile.slow_reader", "the server reads byte by byte", slow_reader),
    Test::new("hostile.flood", "replies without end", flood),
];

/// More than a socket holds: its sender waits until the server has read most of it.
const LARGE: usize = 1 << 20;
const NO_SPACE: u32 = 28;

fn early_reply(context: &Context) -> Result<()> {
    ours_only(context)?;
    run([
        Attack::write("at the header, and then the rest is read", LARGE, Fate::Kept, |peer, request| {
            // By then somebody is sending the rest, and finishes that. What nobody sends could not follow.
            std::thread::sleep(Duration::from_millis(300));
            peer.send(&reply(REPLY_MAGIC, 0, request.cookie))?;
            std::thread::sleep(Duration::from_millis(50));
            peer.reply(request).map(drop)
        }),
        Attack::write(
            "at the header, and the rest is never read",
            LARGE,
            Fate::DroppedAfter,
            |peer, request| {
                peer.send(&reply(REPLY_MAGIC, 0, request.cookie))?;
                peer.stall()
            },
        )
        .timeout()
        .lies(),
        Attack::write("at the header, and then the end", LARGE, Fate::DroppedAfter, |peer, request| {
            peer.send(&reply(REPLY_MAGIC, 0, request.cookie))?;
            std::thread::sleep(Duration::from_millis(50));
            peer.shut_down(Shutdown::Both)?;
            peer.leave()
        })
        .lies(),
        Attack::write("at the header, twice", LARGE, Fate::DroppedAfter, |peer, request| {
            let bytes = reply(REPLY_MAGIC, 0, request.cookie);
            peer.send(&[bytes, bytes].concat())?;
            peer.stall()
        })
        .lies(),
        Attack::write("at the header, for the request after it", LARGE, Fate::Dropped, |peer, request| {
            peer.send(&reply(REPLY_MAGIC, 0, request.cookie.wrapping_add(1 << 32)))?;
            peer.stall()
        }),
    ])
}

fn split(context: &Context) -> Result<()> {
    ours_only(context)?;
    const REPLY: usize = 16 + 512;
    let server = Server::scripted(SIZE, move |peer| {
        let mut at = 1;
        while let Some(request) = peer.request()? {
            if request.command == Command::Disconnect {
                break;
            }
            let bytes = peer.reply(&request)?;
            if request.command != Command::Read || !TARGET.contains(&request.offset) {
                peer.send(&bytes)?;
            } else if at < REPLY {
                peer.send(&bytes[..at])?;
                // The receiver takes what is there before the rest comes.
                std::thread::sleep(Duration::from_micros(300));
                peer.send(&bytes[at..])?;
                at += 1;
            } else {
                bytes.chunks(1).try_for_each(|byte| peer.send(byte))?;
            }
        }
        Ok(())
    })?;
    for transport in [Transport::Unix, Transport::Tcp4] {
        with_attached(&server, Setup::for_server(&server).transport(transport), |_| {
            let direct = open_direct("/dev/nbd0")?;
            for number in 0..REPLY as u64 {
                let offset = TARGET.start + number * 512;
                let data = read_direct(&direct, offset, 512)?;
                ensure!(data[..] == pattern::data(offset, 512, pattern::ORIGINAL), "wrong data at {offset}");
            }
            Ok(())
        })?;
    }
    report(2 * REPLY);
    Ok(())
}

/// Replies of a batch of requests, in the order of another permutation each time.
fn glued(context: &Context) -> Result<()> {
    ours_only(context)?;
    const TASKS: u64 = 8;
    const READS: u64 = 40;
    let server = Server::scripted(SIZE, move |peer| {
        let mut turn = 0;
        while let Some(first) = peer.request()? {
            let mut batch = vec![first];
            // Who else asks within a while is answered with it.
            while batch.len() < TASKS as usize
                && batch[batch.len() - 1].command != Command::Disconnect
                && peer.comes(3)?
            {
                batch.extend(peer.request()?);
            }
            let ends = batch.iter().any(|request| request.command == Command::Disconnect);
            batch.retain(|request| request.command != Command::Disconnect);
            let count = batch.len().max(1);
            batch.rotate_left(turn % count);
            if turn % 2 == 1 {
                batch.reverse();
            }
            turn += 1;
            let mut replies = Vec::new();
            for request in &batch {
                replies.extend(peer.reply(request)?);
            }
            // In one piece, or in pieces that know nothing of where a reply ends.
            let piece = [replies.len(), 1000, 7777][turn % 3].max(1);
            replies.chunks(piece).try_for_each(|piece| peer.send(piece))?;
            if ends {
                break;
            }
        }
        Ok(())
    })?;
    with_attached(&server, Setup::for_server(&server), |_| {
        let readers: Vec<_> = (0..TASKS)
            .map(|task| {
                std::thread::spawn(move || -> Result<()> {
                    let direct = open_direct("/dev/nbd0")?;
                    for number in 0..READS {
                        let length = 512 << (number % 4);
                        let offset = (task * READS + number) * 4096;
                        let data = read_direct(&direct, offset, length)?;
                        let want = pattern::data(offset, length, pattern::ORIGINAL);
                        ensure!(data[..] == want, "wrong data at {offset}");
                    }
                    Ok(())
                })
            })
            .collect();
        for reader in readers {
            reader.join().map_err(|_| anyhow!("a reader panicked"))?.context("a reader")?;
        }
        Ok(())
    })?;
    report((TASKS * READS) as usize);
    Ok(())
}

fn stall(context: &Context) -> Result<()> {
    ours_only(context)?;
    let inside =
        [("before it", 0), ("in its header", 8), ("between header and data", 16), ("in its data", 16 + 5000)];
    let inside = inside.map(|(what, length)| {
        Attack::read(what, Fate::Dropped, move |peer, request| {
            let bytes = peer.reply(request)?;
            peer.send(&bytes[..length])?;
            peer.stall()
        })
        .timeout()
    });
    run(inside)?;
    after_reply()
}

/// The reply is whole, and nothing is wrong yet: the next request is not answered.
fn after_reply() -> Result<()> {
    let server = Server::scripted(SIZE, |peer| {
        while let Some(request) = peer.request()? {
            let last = TARGET.contains(&request.offset) && request.command == Command::Read;
            peer.serve(&request)?;
            if last {
                return peer.stall();
            }
        }
        Ok(())
    })?;
    let device = crate::device::Device::open(0)?;
    let timeout = crate::process::patient(1).as_secs();
    let attachment = Setup::for_server(&server).timeout(timeout).attach(&device, &server)?;
    let direct = open_direct("/dev/nbd0")?;
    let data = read_direct(&direct, TARGET.start, 4096)?;
    ensure!(data[..] == pattern::data(TARGET.start, 4096, pattern::ORIGINAL), "wrong data");
    ensure!(read_direct(&direct, 0, 4096).is_err(), "a read without an answer succeeded");
    println!("after it: NBD_DO_IT returned {:?}", attachment.ended()?);
    drop((direct, device));
    server.wait_closed()?;
    ensure!(server.errors().is_empty(), "{:?}", server.errors());
    crate::device::wait_idle(0)?;
    crate::attach::attaches_again()
}

fn reset(context: &Context) -> Result<()> {
    ours_only(context)?;
    let at =
        [("before the reply", 0), ("in its header", 8), ("in its data", 16 + 5000)].map(|(what, length)| {
            Attack::read(what, Fate::Dropped, move |peer, request| {
                let bytes = peer.reply(request)?;
                peer.send(&bytes[..length])?;
                peer.reset()
            })
            .tcp()
        });
    let in_write = Attack::write("in the middle of a write", LARGE, Fate::Dropped, |peer, _| {
        (0..1000).try_for_each(|_| peer.byte().map(drop))?;
        peer.reset()
    })
    .tcp();
    run(at.into_iter().chain([in_write]))
}

fn half_close(context: &Context) -> Result<()> {
    ours_only(context)?;
    run([
        Attack::read("it will send nothing more (UNIX)", Fate::Dropped, |peer, _| {
            peer.shut_down(Shutdown::Write)?;
            peer.stall()
        }),
        Attack::read("it will send nothing more (TCP)", Fate::Dropped, |peer, _| {
            peer.shut_down(Shutdown::Write)?;
            peer.stall()
        })
        .tcp(),
        Attack::read("it will send nothing more after the reply", Fate::DroppedAfter, |peer, request| {
            peer.serve(request)?;
            peer.shut_down(Shutdown::Write)?;
            peer.stall()
        }),
        Attack::write("it will read nothing more (UNIX)", LARGE, Fate::Dropped, |peer, _| {
            peer.shut_down(Shutdown::Read)?;
            std::thread::sleep(Duration::from_millis(100));
            peer.leave()
        }),
    ])
}

fn never_reads(context: &Context) -> Result<()> {
    ours_only(context)?;
    run([
        Attack::write("a large write", LARGE, Fate::Dropped, |peer, _| peer.stall()).timeout(),
        // The end cannot wait behind what the server does not take.
        Attack::write("a large write (TCP)", LARGE, Fate::Dropped, |peer, _| peer.stall()).timeout().tcp(),
        Attack::write("a write that the socket holds", 4096, Fate::Dropped, |peer, _| peer.stall()).timeout(),
    ])
}

fn slow_reader(context: &Context) -> Result<()> {
    ours_only(context)?;
    run([
        // The bytes are a write's header and data, one read(2) each.
        Attack::write("but reads all", 65536, Fate::Kept, |peer, request| {
            let mut payload = Vec::new();
            while payload.len() < request.length as usize {
                payload.extend(peer.byte()?);
            }
            let bytes = peer.perform(request, &payload)?;
            peer.send(&bytes)
        }),
        Attack::write("slower than the time-out allows", LARGE, Fate::Dropped, |peer, _| {
            while !peer.is_closed()? && peer.byte()?.is_some() {
                std::thread::sleep(Duration::from_millis(5));
            }
            peer.leave()
        })
        .timeout(),
        // Each time that it takes something the sender goes on for a while.
        Attack::write("in bursts, slower than the time-out allows", LARGE, Fate::Dropped, |peer, _| {
            while !peer.is_closed()? {
                for _ in 0..16 << 10 {
                    if peer.byte()?.is_none() {
                        return peer.leave();
                    }
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            peer.leave()
        })
        .timeout(),
    ])
}

fn flood(context: &Context) -> Result<()> {
    ours_only(context)?;
    /// Sends it again and again; the driver closes, which is an error of the send.
    fn send_for_ever(peer: &mut crate::server::Peer<'_>, bytes: &[u8]) -> std::io::Result<()> {
        // A bound in case that it does not: far more than sockets hold.
        for _ in 0..(256 << 20) / bytes.len() {
            peer.send(bytes)?;
        }
        Err(std::io::Error::other("the driver has read 256 MiB of rubbish"))
    }
    run([
        Attack::read("of the right reply", Fate::DroppedAfter, |peer, request| {
            let bytes = peer.reply(request)?;
            send_for_ever(peer, &bytes)
        }),
        Attack::read("of replies to nothing", Fate::Dropped, |peer, request| {
            let bytes = reply(REPLY_MAGIC, 0, !request.cookie).repeat(4096);
            send_for_ever(peer, &bytes)
        }),
        Attack::read("of errors", Fate::DroppedAfter, |peer, request| {
            peer.serve(request)?;
            let bytes = reply(REPLY_MAGIC, NO_SPACE, request.cookie).repeat(4096);
            send_for_ever(peer, &bytes)
        }),
        Attack::read("of zeroes", Fate::Dropped, |peer, _| send_for_ever(peer, &[0; 65536])),
    ])
}
