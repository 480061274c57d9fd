// SPDX-License-Identifier: GPL-2.0
//! What is written is what is read: all request sizes, many tasks, several connections, pending signals.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::SaFlags;
use nix::sys::socket::{setsockopt, sockopt};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::clients::{NbdClient, QemuNbd};
use super::{Context, Test, skip};
use crate::attach::{Attachment, Setup, with_attached};
use crate::device::{self, Device, open_direct, read_direct, req, round_trip, write_direct};
use crate::process::{alarm_storm, fork_child, have, run};
use crate::server::{Action, Command, Export, Server, Transport};

pub const TESTS: &[Test] = &[
    Test::new("data.sizes", "direct I/O of every size from a sector to 1 MiB", sizes).quick(),
    Test::new("data.buffered", "buffered writes reach the server at fsync and are read back", buffered),
    Test::new("data.fio_unix", "fio verifies 4 KiB to 1 MiB over a UNIX socket", |context| {
        fio_in_process(context, Transport::Unix, 1)
    }),
    Test::new("data.fio_tcp", "fio verifies 4 KiB to 1 MiB over TCP", |context| {
        fio_in_process(context, Transport::Tcp4, 1)
    })
    .quick(),
    Test::new("data.fio_multi", "fio verifies 4 KiB to 1 MiB over 4 connections", |context| {
        fio_in_process(context, Transport::Unix, 4)
    }),
    Test::new("data.fio_qemu", "fio verifies a raw file behind qemu-nbd", fio_qemu),
    Test::new(
        "data.fio_qemu_multi",
        "fio verifies it over 4 connections that nbd-client made",
        fio_qemu_multi,
    ),
    Test::new("data.many_tasks", "32 tasks at once, each on its own blocks", many_tasks),
    Test::new("data.signals_unix", "a storm of signals during big writes loses nothing (UNIX)", |context| {
        signals(context, Transport::Unix)
    }),
    Test::new("data.signals_tcp", "a storm of signals during big writes loses nothing (TCP)", |context| {
        signals(context, Transport::Tcp4)
    }),
    Test::new("data.big_request", "one request of 32 MiB", big_request),
];

const SIZE: u64 = 32 << 20;

fn server() -> Result<Server> {
    Ok(Server::new(Export::memory(SIZE)?))
}

fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

fn sizes(_: &Context) -> Result<()> {
    let server = server()?;
    with_attached(&server, Setup::for_server(&server), |_| {
        let direct = open_direct("/dev/nbd0")?;
        let mut rng = SmallRng::seed_from_u64(1);
        let mut length = 512;
        while length <= 1 << 20 {
            for length in [length, length + 512] {
                let offset = rng.random_range(0..(SIZE - length as u64) / 512) * 512;
                let data = random(length as u64, length);
                round_trip(&direct, offset, &data).with_context(|| format!("{length} bytes"))?;
                ensure!(server.export().read(offset, length)? == data, "the server holds other data");
            }
            length *= 2;
        }
        Ok(())
    })
}

fn buffered(_: &Context) -> Result<()> {
    let server = server()?;
    let data = random(2, 8 << 20);
    with_attached(&server, Setup::for_server(&server), |device| {
        // Neither start nor end lies on a page.
        device.file().write_all_at(&data, 1234)?;
        device.file().sync_all()?;
        ensure!(server.export().read(1234, data.len())? == data, "the server holds other data");
        device.flush_buffers()?;
        server.forget();
        let mut back = vec![0; data.len()];
        device.file().read_exact_at(&mut back, 1234)?;
        ensure!(back == data, "other data are read back");
        ensure!(!server.seen_of(Command::Read).is_empty(), "the server was not asked");
        Ok(())
    })
}

/// Random writes of 4 KiB to 1 MiB, each block with its checksum, then all of it verified.
pub fn fio(context: &Context, extra: &[&str]) -> Result<()> {
    if !have("fio") {
        return skip("there is no fio");
    }
    let size = format!("--size={}m", context.rounds(32, 8));
    let mut args = vec![
        "--name=verify",
        "--filename=/dev/nbd0",
        "--thread",
        "--rw=randwrite",
        "--bsrange=4k-1m",
        "--blockalign=4k",
        &size,
        "--randseed=7",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_backlog=0",
    ];
    args.extend(extra);
    run("fio", &args).map(drop)
}

/// Asynchronous and direct, then synchronous and buffered.
fn fio_both(context: &Context) -> Result<()> {
    fio(context, &["--ioengine=libaio", "--iodepth=16", "--direct=1"]).context("direct, by libaio")?;
    if context.quick {
        return Ok(());
    }
    fio(context, &["--ioengine=psync", "--direct=0", "--end_fsync=1"]).context("buffered, by psync")
}

fn fio_in_process(context: &Context, transport: Transport, connections: usize) -> Result<()> {
    let server = server()?;
    let setup = Setup::for_server(&server).transport(transport).block_size(4096);
    let setup = if connections > 1 { setup.connections(connections) } else { setup };
    with_attached(&server, setup, |_| fio_both(context))?;
    let mut used: Vec<usize> = server.seen_of(Command::Write).iter().map(|write| write.connection).collect();
    used.sort_unstable();
    used.dedup();
    println!("connections that carried writes: {used:?}");
    Ok(())
}

fn raw_image(context: &Context) -> Result<String> {
    let path = context.scratch_file("image.raw");
    std::fs::File::create(&path)?.set_len(SIZE)?;
    Ok(path)
}

fn fio_qemu(context: &Context) -> Result<()> {
    let image = raw_image(context)?;
    let client = QemuNbd::connect(0, &image, "raw")?;
    fio_both(context)?;
    client.disconnect()
}

fn fio_qemu_multi(context: &Context) -> Result<()> {
    let image = raw_image(context)?;
    let socket = context.scratch_file("socket");
    let server = QemuNbd::listen(Path::new(&socket), &image, 8)?;
    let client = NbdClient::connect(0, &["-unix", &socket, "-N", "", "-connections", "4"])?;
    fio_both(context)?;
    client.disconnect()?;
    drop(server);
    Ok(())
}

fn many_tasks(_: &Context) -> Result<()> {
    const TASKS: u64 = 32;
    let server = server()?;
    with_attached(&server, Setup::for_server(&server).connections(4), |_| {
        let mut tasks = Vec::new();
        for task in 0..TASKS {
            tasks.push(std::thread::spawn(move || -> Result<()> {
                let direct = open_direct("/dev/nbd0")?;
                for round in 0..12 {
                    let data = random((task << 8) | round, 32 << 10);
                    let slot = (round * TASKS + task) % (SIZE / (32 << 10));
                    round_trip(&direct, slot * (32 << 10), &data).with_context(|| format!("task {task}"))?;
                }
                Ok(())
            }));
        }
        for task in tasks {
            task.join().map_err(|_| anyhow!("a task panicked"))??;
        }
        Ok(())
    })
}

/// Attaches by a socket of the test's own.
fn attach_by(socket: OwnedFd) -> Result<Attachment> {
    let device = Device::open(0)?;
    device.ioctl(req::SET_SOCK, socket.as_raw_fd() as u64)?;
    drop(socket);
    device.ioctl(req::SET_SIZE, SIZE)?;
    let attachment = Attachment::start(&device)?;
    attachment.wait_running(SIZE)?;
    Ok(attachment)
}

/// The driver's send buffer is small and the server slow, so that sends block half way, where a signal finds them.
fn signals(context: &Context, transport: Transport) -> Result<()> {
    const LENGTH: usize = 4 << 20;
    let rounds = context.rounds(8, 2) as u64;
    let server = Server::with_behaviour(Export::memory(SIZE)?, |request| match request.command {
        Command::Write => Action::Delay(Duration::from_millis(3)),
        _ => Action::Serve,
    });
    let socket = server.connect(transport)?;
    // TCP stalls for a delayed acknowledgement whenever a very small buffer is full.
    let send_buffer = if transport == Transport::Unix { 8192 } else { 128 << 10 };
    setsockopt(&socket, sockopt::SndBuf, &send_buffer)?;
    let attachment = attach_by(socket)?;
    let mut writer = fork_child(&[], move |ready| {
        let direct = open_direct("/dev/nbd0")?;
        alarm_storm(1_000, SaFlags::empty())?;
        for round in 0..rounds {
            let data = device::Buffer::filled(&random(round, LENGTH));
            let mut done = 0;
            while done < LENGTH {
                let offset = round * LENGTH as u64 + done as u64;
                match direct.write_at(&data[done..], offset) {
                    Ok(count) => done += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).context(format!("write at {offset}")),
                }
            }
        }
        ready.tell("written")
    })?;
    writer.expect_line("written")?;
    writer.success()?;
    for round in 0..rounds {
        let there = server.export().read(round * LENGTH as u64, LENGTH)?;
        ensure!(there == random(round, LENGTH), "write {round} arrived damaged");
    }
    attachment.detach()?;
    ensure!(server.errors().is_empty(), "the server complains: {:?}", server.errors());
    Ok(())
}

fn big_request(_: &Context) -> Result<()> {
    const LENGTH: usize = 32 << 20;
    let server = Server::new(Export::memory(SIZE)?);
    // The socket's buffer is the usual one: the request is hundreds of times larger.
    let (client, theirs) = UnixStream::pair()?;
    server.serve_unix(theirs)?;
    let attachment = attach_by(client.into())?;
    std::fs::write(device::sysfs_path(0, "queue/max_sectors_kb"), "32768")?;
    let direct = open_direct("/dev/nbd0")?;
    let data = random(5, LENGTH);
    write_direct(&direct, 0, &data)?;
    ensure!(server.export().read(0, LENGTH)? == data, "the server holds other data");
    ensure!(read_direct(&direct, 0, LENGTH)?[..] == data, "other data are read back");
    let longest = |command| server.seen_of(command).iter().map(|request| request.length).max().unwrap_or(0);
    let (write, read) = (longest(Command::Write), longest(Command::Read));
    println!("longest write {write}, longest read {read}");
    ensure!(write as usize == LENGTH && read as usize == LENGTH, "the request was split");
    drop(direct);
    attachment.detach()
}
