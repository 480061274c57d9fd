// SPDX-License-Identifier: GPL-2.0
//! Attaching and detaching again and again: nothing grows.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;

use crate::attach::Setup;
use crate::device::{Device, open_direct, req, round_trip, wait_idle};
use crate::netlink::Client;
use crate::process::wait_for;
use crate::server::{Export, Server, Transport};
use crate::tests::{Context, Test, ours_only};

pub const TESTS: &[Test] = &[Test::new(
    "load.repeated",
    "attached and detached again and again in every way (10,000 times in `make soak`): nothing grows",
    repeated,
)
.limit(400)];

const SIZE: u64 = 1 << 20;

/// What the kernel has in use: objects by slab cache, sockets, open files, and KiB of memory of some kinds.
fn in_use() -> Result<BTreeMap<String, i64>> {
    let mut used = BTreeMap::new();
    // Memory that is not used, and that which is given back by and by.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let text = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
    let first = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok());
    // KASAN keeps what was freed for a while; there the leak detector looks for what is lost.
    if !Path::new("/sys/kernel/debug/kmemleak").exists() {
        for line in text("/proc/slabinfo")?.lines().skip(2) {
            let (name, numbers) = line.split_once(' ').context("slabinfo")?;
            // These are given back much later, thousands at once. What they stand for is below.
            if name != "vmap_area" {
                used.insert(format!("slab {name}"), first(numbers).context("slabinfo")?);
            }
        }
    }
    for line in text("/proc/meminfo")?.lines() {
        let Some((name @ ("KernelStack" | "VmallocUsed" | "Percpu"), rest)) = line.split_once(':') else {
            continue;
        };
        used.insert(format!("KiB of {name}"), first(rest).context("meminfo")?);
    }
    let sockets = text("/proc/net/sockstat")?;
    let sockets = sockets.strip_prefix("sockets: used ").and_then(first).context("sockstat")?;
    used.insert("sockets".to_owned(), sockets);
    used.insert("files".to_owned(), first(&text("/proc/sys/fs/file-nr")?).context("file-nr")?);
    Ok(used)
}

/// What there is more of than before, by at least one for every other round.
fn grown(before: &BTreeMap<String, i64>, rounds: usize) -> Result<Vec<String>> {
    let bound = rounds as i64 / 2;
    let now = in_use()?;
    let more = now.iter().filter(|(name, count)| **count - before.get(*name).unwrap_or(&0) >= bound);
    Ok(more.map(|(name, count)| format!("{name}: {:?}, now {count}", before.get(name))).collect())
}

/// Once, in one of the ways to begin and to end.
fn once(way: usize, server: &Server, client: &Client) -> Result<()> {
    let works = || round_trip(&open_direct("/dev/nbd0")?, 4096, &[way as u8; 4096]);
    match way % 4 {
        0 => {
            let device = Device::open(0)?;
            let attachment = Setup::for_server(server).connections(2).attach(&device, server)?;
            works()?;
            attachment.detach()?;
        }
        1 => {
            let socket = server.connect(Transport::Unix)?;
            let connected = client.connect(Some(0), SIZE, &[socket.as_raw_fd()], &[])?;
            ensure!(connected == Ok(0), "CONNECT: {connected:?}");
            drop(socket);
            works()?;
            client.disconnect(0)?.map_err(|refusal| anyhow!("DISCONNECT: {refusal:?}"))?;
        }
        2 => {
            let device = Device::open(0)?;
            let attachment = Setup::for_server(server).transport(Transport::Tcp4).attach(&device, server)?;
            works()?;
            server.close();
            let ended = attachment.ended()?;
            ensure!(ended == Err(Errno::EPIPE), "NBD_DO_IT returned {ended:?}");
        }
        _ => {
            let device = Device::open(0)?;
            Setup::for_server(server).prepare(&device, server)?;
            if way % 8 == 3 {
                device.ioctl(req::CLEAR_SOCK, 0)?;
            }
        }
    }
    server.wait_closed()?;
    server.forget();
    wait_idle(0)
}

fn repeated(context: &Context) -> Result<()> {
    ours_only(context)?;
    let server = Server::new(Export::memory(SIZE)?);
    let client = Client::open()?;
    let rounds = if context.soak { 10_000 } else { context.rounds(400, 80) };
    let run = |rounds: usize| {
        (0..rounds).try_for_each(|way| once(way, &server, &client).with_context(|| format!("round {way}")))
    };
    // What is made once and kept, or kept for the next time.
    run(rounds.min(1000) / 2)?;
    let before = in_use()?;
    run(rounds)?;
    let mut more = Vec::new();
    wait_for("nothing to have grown", || {
        more = grown(&before, rounds).unwrap_or_else(|error| vec![format!("{error:#}")]);
        more.is_empty()
    })
    .with_context(|| more.join("\n"))?;
    println!("{rounds} attachments; {} counts are flat", before.len());
    Ok(())
}
