// SPDX-License-Identifier: GPL-2.0
//! Replies that are right in themselves, but answer nothing that was asked on their connection.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Attack, Fate, SIZE, TARGET, report, run};
use crate::attach::{Setup, with_attached};
use crate::device::{open_direct, read_direct};
use crate::process::{PATIENCE, wait_for};
use crate::server::{Command, Peer, Request, Server, pattern};
use crate::tests::{Context, Test, ours_only};

pub const TESTS: &[Test] = &[
    Test::new("hostile.unknown_cookie", "a reply to what was never asked drops the connection", unknown),
    Test::new("hostile.stale_cookie", "a reply to an earlier use of the tag drops the connection", stale)
        .quick(),
    Test::new("hostile.duplicate", "a second reply drops the connection", duplicate),
    Test::new(
        "hostile.other_connections_cookie",
        "a reply to what was asked on another connection drops the one on which it comes",
        other_connection,
    ),
];

/// Sends a whole reply that names another request.
fn with_cookie(peer: &mut Peer<'_>, request: &Request, cookie: u64) -> io::Result<()> {
    let mut bytes = peer.reply(request)?;
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    peer.send(&bytes)
}

type Change = fn(u64) -> u64;

fn attacks<const N: usize>(changes: [(&'static str, Change); N]) -> impl Iterator<Item = Attack> {
    changes.into_iter().map(|(what, change)| {
        Attack::read(what, Fate::Dropped, move |peer, request| {
            with_cookie(peer, request, change(request.cookie))
        })
    })
}

const SEQUENCE: u64 = 1 << 32;

fn unknown(context: &Context) -> Result<()> {
    ours_only(context)?;
    run(attacks([
        ("cookie 0", |_| 0),
        ("all bits set", |_| !0),
        ("all bits turned", |cookie| !cookie),
        ("its bytes in the other order", |cookie| cookie.swap_bytes()),
        ("the next tag", |cookie| cookie ^ 1),
        ("a tag beyond the queue's depth", |cookie| cookie | 0x80),
        ("the highest tag", |cookie| cookie | 0xffff),
        ("a queue that there is not", |cookie| cookie | 0xffff_0000),
        ("the sign bit of the tag", |cookie| cookie | 0x8000_0000),
    ]))
}

fn stale(context: &Context) -> Result<()> {
    ours_only(context)?;
    run(attacks([
        ("the number before", |cookie| cookie.wrapping_sub(SEQUENCE)),
        ("the next number, which is not asked yet", |cookie| cookie.wrapping_add(SEQUENCE)),
        ("number 0", |cookie| cookie & 0xffff_ffff),
        ("a number half the range away", |cookie| cookie ^ (1 << 63)),
        ("one bit of the number", |cookie| cookie ^ (1 << 40)),
    ]))
}

fn duplicate(context: &Context) -> Result<()> {
    ours_only(context)?;
    run([
        Attack::read("twice in one piece", Fate::DroppedAfter, |peer, request| {
            let bytes = peer.reply(request)?;
            peer.send(&[&bytes[..], &bytes[..]].concat())
        }),
        Attack::read("the header twice, then the data", Fate::DroppedAfter, |peer, request| {
            // The second header counts as data of the first, and what is left over is no reply. The data differ, so
            // let it be the same header only after the data.
            let bytes = peer.reply(request)?;
            peer.send(&bytes)?;
            peer.send(&bytes[..16])
        }),
        Attack::read("again, after a while", Fate::DroppedAfter, |peer, request| {
            let bytes = peer.reply(request)?;
            peer.send(&bytes)?;
            std::thread::sleep(std::time::Duration::from_millis(30));
            peer.send(&bytes)
        }),
        Attack::write("a write, twice", 65536, Fate::DroppedAfter, |peer, request| {
            let bytes = peer.reply(request)?;
            peer.send(&[&bytes[..], &bytes[..]].concat())
        }),
    ])
}

/// How far two connections have come in [`other_connection`].
#[derive(Default)]
struct Play {
    /// The request that waits, and its connection.
    waits: Option<Request>,
    /// The lie was told on the other connection.
    told: bool,
}

fn other_connection(context: &Context) -> Result<()> {
    ours_only(context)?;
    let play = Arc::new((Mutex::new(Play::default()), Condvar::new()));
    let theirs = play.clone();
    let server = Server::scripted(SIZE, move |peer| {
        while let Some(request) = peer.request()? {
            let (state, changed) = &*theirs;
            let mut play = state.lock().map_err(|_| io::Error::other("poisoned"))?;
            let meant = request.command == Command::Read && TARGET.contains(&request.offset);
            match play.waits {
                None if meant => {
                    play.waits = Some(request);
                    changed.notify_all();
                    let lied = changed
                        .wait_timeout_while(play, *PATIENCE, |play| !play.told)
                        .map_err(|_| io::Error::other("poisoned"))?;
                    drop(lied);
                    // Whoever took the lie for the answer has other data by now.
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    peer.serve(&request)?;
                }
                Some(waits) if meant && !play.told && waits.connection != peer.connection => {
                    // The data that are meant for this one, as the answer to the other.
                    with_cookie(peer, &request, waits.cookie)?;
                    play.told = true;
                    changed.notify_all();
                }
                _ if request.command == Command::Disconnect => break,
                _ => {
                    drop(play);
                    peer.serve(&request)?;
                }
            }
        }
        Ok(())
    })?;
    with_attached(&server, Setup::for_server(&server).connections(2), |_| {
        let mut tasks = Vec::new();
        // Which connection a request goes over is the block layer's choice, by CPU.
        let cpus = std::thread::available_parallelism()?.get();
        for cpu in 0..cpus {
            let offset = TARGET.start + cpu as u64 * 65536;
            tasks.push(std::thread::spawn(move || -> Result<()> {
                let mut set = nix::sched::CpuSet::new();
                set.set(cpu)?;
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
                let data = read_direct(&open_direct("/dev/nbd0")?, offset, 4096)?;
                ensure!(data[..] == pattern::data(offset, 4096, pattern::ORIGINAL), "another one's data");
                Ok(())
            }));
        }
        for task in tasks {
            task.join().map_err(|_| anyhow!("a reader panicked"))?.context("a reader")?;
        }
        let (state, _) = &*play;
        let told = state.lock().map_err(|_| anyhow!("poisoned"))?.told;
        ensure!(told, "only one connection was asked, of {cpus} processors");
        wait_for("the lying connection to be dropped", || server.open_connections() == 1)
    })?;
    report(1);
    Ok(())
}
