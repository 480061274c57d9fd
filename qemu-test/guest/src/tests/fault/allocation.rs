// SPDX-License-Identifier: GPL-2.0
//! An allocation that fails, at each place of an operation in turn: it fails as a whole, or does without; and the same
//! operation works afterwards. Needs a kernel with fault injection (`make test DEBUG=1`).

use std::fs::{self, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;

use super::allocations;
use crate::attach::attaches_again;
use crate::device::{Device, attached, flag, open_direct, req, round_trip, sysfs, wait_idle};
use crate::netlink::{Client, attr, attr_flag, attr_u64};
use crate::process::wait_for;
use crate::server::{Export, Server, Transport};
use crate::tests::{Context, Test, seed, tried};

pub const TESTS: &[Test] = &[
    Test::new("fault.load", "of loading the module", load).unloaded().limit(400),
    Test::new("fault.setup", "of NBD_SET_SOCK and NBD_SET_SIZE", setup).limit(200),
    Test::new("fault.start", "of NBD_DO_IT, to its end", start).limit(300),
    Test::new("fault.connect", "of CONNECT", connect).limit(300),
    Test::new("fault.add", "of CONNECT with a device that is made for it and goes with it", add).limit(400),
    Test::new("fault.reconnect", "of RECONFIGURE with a dead connection", reconnect).limit(300),
    Test::new("fault.handover", "of RECONFIGURE with a handover", handover).limit(300),
    Test::new("fault.status", "of STATUS", status).limit(120),
];

const NTH: &str = "/proc/thread-self/fail-nth";

/// More places than any operation has.
const MOST: usize = 100_000;

/// Has an allocation of a thread fail. Others are left alone.
#[derive(Default)]
struct Nth {
    left: AtomicUsize,
}

impl Nth {
    /// Runs `step`, whose allocation number `place` fails.
    fn within<T>(&self, place: usize, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let file = OpenOptions::new().read(true).write(true).open(NTH)?;
        let set = |nth: usize| file.write_all_at(nth.to_string().as_bytes(), 0).context("fail-nth");
        set(place)?;
        let result = step();
        let mut text = [0; 16];
        let length = file.read_at(&mut text, 0)?;
        set(0)?;
        self.left.store(std::str::from_utf8(&text[..length])?.trim().parse()?, Ordering::SeqCst);
        result
    }

    /// How many allocations too few there were, the last time, for one to fail; 0, if one has failed.
    fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }
}

/// How many places of an operation are tried: all of them where there is time for it, else so many.
const TRIED: usize = 150;

/// The places to try of an operation that has them from `first` to `last`.
fn places(context: &Context, first: usize, last: usize) -> Result<Vec<usize>> {
    let count = (last + 1).checked_sub(first).context("nothing is allocated")?;
    let stride = if context.soak { 1 } else { count.div_ceil(context.rounds(TRIED, 20)) };
    // Each run tries others.
    let offset = if stride == 1 { 0 } else { (seed()? % stride as u64) as usize };
    // The operation's way is not the same each time: a few more.
    let places: Vec<_> = (first + offset..=last + 4 * stride).step_by(stride).collect();
    println!("{count} allocations, of which {} are tried", places.len());
    Ok(places)
}

/// Runs `step` with an allocation failing, each time another one. `check` gets what it returned.
fn at_each<T>(
    context: &Context,
    step: impl FnMut(&Nth, usize) -> Result<T>,
    check: impl FnMut(Result<T>) -> Result<()>,
) -> Result<()> {
    at_each_from(context, 1, step, check)
}

/// The same without those before number `first`.
fn at_each_from<T>(
    context: &Context,
    first: usize,
    mut step: impl FnMut(&Nth, usize) -> Result<T>,
    mut check: impl FnMut(Result<T>) -> Result<()>,
) -> Result<()> {
    let _faults = allocations()?;
    let nth = Nth::default();
    check(Ok(step(&nth, MOST)?))?;
    let (mut faults, mut failed) = (0, 0);
    for place in places(context, first, MOST - nth.left())? {
        let result = step(&nth, place);
        faults += usize::from(nth.left() == 0);
        failed += usize::from(result.is_err());
        check(result).with_context(|| format!("after allocation {place} failed"))?;
    }
    println!("{failed} of the faults failed the operation");
    ensure!(faults > 0, "no allocation failed");
    tried(faults, "faults");
    Ok(())
}

fn server() -> Result<Server> {
    Ok(Server::new(Export::memory(1 << 20)?))
}

fn load(context: &Context) -> Result<()> {
    let remove = || context.driver.remove().map_err(|errno| anyhow!("rmmod: {errno}"));
    load_at_each(context, "nbds_max=1", |_| Ok(()), remove)
}

/// Loads the driver with an allocation failing, each time another one, and if that failed, without. `look` is told
/// whether it failed.
pub(super) fn load_at_each(
    context: &Context,
    params: &str,
    mut look: impl FnMut(bool) -> Result<()>,
    mut remove: impl FnMut() -> Result<()>,
) -> Result<()> {
    let _faults = allocations()?;
    let driver = context.driver;
    let image = fs::read(driver.file(&context.modules))?;
    // The kernel's loader has hundreds before the driver's first, and warns of some. The driver refuses this parameter
    // before all else that it does.
    let nth = Nth::default();
    let refused = nth.within(MOST, || driver.insert_image(&image, "nbds_max=100000000"))?;
    ensure!(refused == Err(Errno::EINVAL), "insmod with too many devices: {refused:?}");
    at_each_from(
        context,
        MOST - nth.left(),
        |nth, place| nth.within(place, || Ok(driver.insert_image(&image, params)??)),
        |result| {
            ensure!(result.is_ok() == driver.loaded(), "insmod gave {result:?}, loaded: {}", driver.loaded());
            look(result.is_err())?;
            if result.is_err() {
                driver.load(&context.modules, params)?;
            }
            remove()
        },
    )
}

fn setup(context: &Context) -> Result<()> {
    at_each(
        context,
        |nth, place| {
            let server = server()?;
            let socket = server.connect(Transport::Unix)?;
            let device = Device::open(0)?;
            nth.within(place, || {
                device.ioctl(req::SET_SIZE, 1 << 20)?;
                device.ioctl(req::SET_SOCK, socket.as_raw_fd() as u64)?;
                // Also what the last close does counts.
                drop((device, socket));
                Ok(())
            })
        },
        |_| attaches_again(),
    )
}

fn start(context: &Context) -> Result<()> {
    at_each(
        context,
        |nth, place| {
            let server = server()?;
            let device = Device::open(0)?;
            crate::attach::Setup::for_server(&server).prepare(&device, &server)?;
            let result = std::thread::scope(|scope| {
                let starter = scope.spawn(|| nth.within(place, || Ok(device.ioctl(req::DO_IT, 0)?)));
                wait_for("NBD_DO_IT to attach or to fail", || starter.is_finished() || attached(0))?;
                while !starter.is_finished() {
                    // It may have ended by itself.
                    let _ = device.ioctl(req::DISCONNECT, 0);
                    std::thread::sleep(Duration::from_millis(5));
                }
                starter.join().map_err(|_| anyhow!("the starter panicked"))?
            });
            let _ = device.ioctl(req::CLEAR_SOCK, 0);
            drop(device);
            server.wait_closed().with_context(|| format!("{result:?}"))?;
            wait_idle(0)?;
            result
        },
        |_| attaches_again(),
    )
}

fn sockets(server: &Server, count: usize) -> Result<(Vec<OwnedFd>, Vec<i32>)> {
    let sockets = (0..count).map(|_| server.connect(Transport::Unix)).collect::<Result<Vec<_>>>()?;
    let fds = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    Ok((sockets, fds))
}

fn connect_with(client: &Client, index: u32, fds: &[i32], client_flags: u64) -> Result<u32> {
    let flags = attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN);
    let options = [flags, attr_u64(attr::CLIENT_FLAGS, client_flags)];
    client.connect(Some(index), 1 << 20, fds, &options)?.map_err(|refusal| anyhow!("refused: {refusal:?}"))
}

fn disconnect(index: u32) -> Result<()> {
    Client::open()?.disconnect(index)?.map_err(|refusal| anyhow!("DISCONNECT: {refusal:?}"))
}

fn connect(context: &Context) -> Result<()> {
    at_each(
        context,
        |nth, place| {
            let server = server()?;
            let client = Client::open()?;
            let (_sockets, fds) = sockets(&server, 2)?;
            nth.within(place, || connect_with(&client, 0, &fds, 0))
        },
        |_| {
            // Also if it failed: the reply may be what could not be received.
            disconnect(0)?;
            wait_idle(0)?;
            attaches_again()
        },
    )
}

fn add(context: &Context) -> Result<()> {
    const INDEX: u32 = 7;
    const DESTROY: u64 = 1;
    at_each(
        context,
        |nth, place| {
            let server = server()?;
            let client = Client::open()?;
            let (_sockets, fds) = sockets(&server, 1)?;
            nth.within(place, || connect_with(&client, INDEX, &fds, DESTROY))
        },
        |_| {
            let there = || sysfs(INDEX, "nbd/state").is_some();
            // If it failed the device may be there, without anything in it, or about to go.
            if there() {
                let _ = disconnect(INDEX);
            }
            let server = server()?;
            let (_sockets, fds) = sockets(&server, 1)?;
            connect_with(&Client::open()?, INDEX, &fds, DESTROY)?;
            round_trip(&open_direct(format!("/dev/nbd{INDEX}"))?, 0, &[4; 4096])?;
            disconnect(INDEX)?;
            wait_for("the device to be gone", || !there())
        },
    )
}

fn wait_live(count: usize) -> Result<()> {
    wait_for("the live connections", || sysfs(0, "nbd/live_connections") == Some(count.to_string()))
}

fn reconnect(context: &Context) -> Result<()> {
    let server = server()?;
    let client = Client::open()?;
    let (first, fds) = sockets(&server, 2)?;
    connect_with(&client, 0, &fds, 0)?;
    drop(first);
    let direct = open_direct("/dev/nbd0")?;
    at_each(
        context,
        |nth, place| {
            server.close();
            wait_live(0)?;
            let (_sockets, fds) = sockets(&server, 2)?;
            nth.within(place, || {
                let answer = client.reconfigure(0, &fds, &[])?;
                answer.map_err(|refusal| anyhow!("refused: {refusal:?}"))
            })
        },
        |result| {
            if result.is_err() {
                let (_sockets, fds) = sockets(&server, 2)?;
                let again = Client::open()?.reconfigure(0, &fds, &[])?;
                again.map_err(|refusal| anyhow!("afterwards: {refusal:?}"))?;
            }
            wait_live(2)?;
            round_trip(&direct, 0, &[6; 4096])
        },
    )?;
    drop(direct);
    disconnect(0)
}

fn handover(context: &Context) -> Result<()> {
    let server = server()?;
    let client = Client::open()?;
    let (first, fds) = sockets(&server, 1)?;
    connect_with(&client, 0, &fds, 0)?;
    drop(first);
    let direct = open_direct("/dev/nbd0")?;
    at_each(
        context,
        |nth, place| {
            let (_sockets, fds) = sockets(&server, 1)?;
            nth.within(place, || {
                let answer = client.reconfigure(0, &fds, &[attr_flag(attr::HANDOVER)])?;
                answer.map_err(|refusal| anyhow!("refused: {refusal:?}"))
            })
        },
        |_| {
            wait_live(1)?;
            round_trip(&direct, 0, &[7; 4096])
        },
    )?;
    drop(direct);
    disconnect(0)
}

fn status(context: &Context) -> Result<()> {
    let client = Client::open()?;
    at_each(
        context,
        |nth, place| {
            nth.within(place, || client.status(None)?.map_err(|refusal| anyhow!("refused: {refusal:?}")))
        },
        |_| {
            Client::open()?.status(None)?.map_err(|refusal| anyhow!("afterwards: {refusal:?}"))?;
            Ok(())
        },
    )
}
