// SPDX-License-Identifier: GPL-2.0
//! One task that makes calls at random until it is killed. What it does depends on its seed and on what it is answered
//! alone.

use std::fmt;
use std::fs::File;
use std::net::TcpListener;
use std::num::NonZero;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use netlink_packet_core::DefaultNla;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};

use super::SIZE;
use crate::device::{Device, flag, open_direct, read_direct, req};
use crate::netlink::{Client, Family, attr, attr_nested, attr_u32, attr_u64, command, to_bytes};

/// The kinds of calls.
#[derive(Clone, Copy)]
pub enum Kind {
    Ioctl,
    Netlink,
}

/// How many calls were made, and how many succeeded; all tasks count here.
pub struct Counters(&'static [AtomicUsize; 4]);

impl Counters {
    pub fn new() -> Result<Counters> {
        let length = NonZero::new(size_of::<[AtomicUsize; 4]>()).unwrap_or(NonZero::<usize>::MIN);
        let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: new memory, at a place that the kernel chooses.
        let memory = unsafe { mmap_anonymous(None, length, rights, flags) }?;
        // SAFETY: it is a page of zeroes, which atomics can be made of, and is never unmapped.
        Ok(Counters(unsafe { memory.cast().as_ref() }))
    }

    pub fn made(&self, kind: Kind) -> usize {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    pub fn succeeded(&self, kind: Kind) -> usize {
        self.0[kind as usize + 2].load(Ordering::Relaxed)
    }

    /// Counts a call before it is made, for its task may be killed in it.
    fn count<T, E>(&self, kind: Kind, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
        call().inspect(|_| {
            self.0[kind as usize + 2].fetch_add(1, Ordering::Relaxed);
        })
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, name) in [(Kind::Ioctl, "ioctls, "), (Kind::Netlink, "netlink commands, ")] {
            write!(f, "{} {name}{} of which succeeded; ", self.made(kind), self.succeeded(kind))?;
        }
        Ok(())
    }
}

/// Block ioctls that matter to a driver and take a number, or nothing: BLKRRPART, BLKFLSBUF, BLKRASET.
const OTHERS: [u32; 3] = [0x125f, 0x1261, 0x1262];

/// Numbers at which something may begin or end.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    511,
    512,
    1024,
    4096,
    4097,
    65536,
    SIZE / 512,
    SIZE,
    1 << 31,
    u32::MAX as u64,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

fn number(rng: &mut SmallRng) -> u64 {
    match rng.random_range(0..3) {
        0 => rng.random::<u64>() >> rng.random_range(0..64),
        _ => EDGES.choose(rng).copied().unwrap_or(0),
    }
}

/// A descriptor, open or not, that is offered as a socket.
struct Offered {
    fd: i32,
    _open: Option<OwnedFd>,
}

impl Offered {
    fn of(owned: impl Into<OwnedFd>) -> Offered {
        let owned = owned.into();
        Offered { fd: owned.as_raw_fd(), _open: Some(owned) }
    }
}

pub struct Task<'a> {
    rng: SmallRng,
    device: Device,
    family: Family,
    client: Client,
    served: &'a Path,
    silent: &'a Path,
    privileged: bool,
    counters: &'a Counters,
}

impl<'a> Task<'a> {
    pub fn new(
        seed: u64,
        served: &'a Path,
        silent: &'a Path,
        privileged: bool,
        counters: &'a Counters,
    ) -> Result<Task<'a>> {
        extern "C" fn nothing(_: libc::c_int) {}
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGUSR1, &action) }?;
        // A device that goes with its generation may be gone at the moment.
        let device = (0..3).find_map(|index| Device::open(index).ok());
        let device = match device {
            Some(device) => device,
            None => loop {
                std::thread::sleep(Duration::from_millis(5));
                if let Ok(device) = Device::open(0) {
                    break device;
                }
            },
        };
        if !privileged {
            nix::unistd::setresuid(65534.into(), 65534.into(), 65534.into())?;
        }
        let family = Family::find()?.ok_or_else(|| anyhow::anyhow!("the family nbd is gone"))?;
        let client = Client::of(&family)?;
        let rng = SmallRng::seed_from_u64(seed);
        SigSet::from(Signal::SIGUSR1).thread_unblock()?;
        Ok(Task { rng, device, family, client, served, silent, privileged, counters })
    }

    pub fn run(mut self) -> Result<()> {
        loop {
            match self.rng.random_range(0..20) {
                0..9 => self.ioctl()?,
                9..17 => self.netlink()?,
                17 => self.reopen(),
                18 => self.read(),
                _ => std::thread::sleep(Duration::from_micros(self.rng.random_range(0..2000))),
            }
        }
    }

    fn reopen(&mut self) {
        if let Ok(device) = Device::open(self.rng.random_range(0..4)) {
            self.device = device;
        }
    }

    fn read(&mut self) {
        let offset = self.rng.random_range(0..SIZE / 4096) * 4096;
        let direct = open_direct(crate::device::node(self.device.index()));
        let _ = direct.map(|direct| read_direct(&direct, offset, 4096));
    }

    /// Mostly a socket that is served.
    fn offered(&mut self) -> Offered {
        let made = match self.rng.random_range(0..16) {
            0 => return Offered { fd: self.rng.random_range(-2..64), _open: None },
            1 => UnixDatagram::unbound().map(Offered::of),
            2 => TcpListener::bind("127.0.0.1:0").map(Offered::of),
            3 => File::open("/dev/null").map(Offered::of),
            4 => self.device.file().try_clone().map(Offered::of),
            // Nobody is at the other end, or nobody who answers.
            5 => UnixStream::pair().map(|(one, _)| Offered::of(one)),
            6 => UnixStream::connect(self.silent).map(Offered::of),
            _ => UnixStream::connect(self.served).map(Offered::of),
        };
        made.unwrap_or(Offered { fd: -1, _open: None })
    }

    fn ioctl(&mut self) -> Result<()> {
        let rng = &mut self.rng;
        let request = match rng.random_range(0..16) {
            0 => 0xab00 + rng.random_range(0..32),
            1 => OTHERS.choose(rng).copied().unwrap_or(OTHERS[0]),
            2..5 => req::DO_IT,
            5..8 => req::SET_SOCK,
            _ => req::ALL.choose(rng).map_or(req::DO_IT, |(_, request)| *request),
        };
        let offered = if request == req::SET_SOCK { Some(self.offered()) } else { None };
        let argument = match &offered {
            Some(Offered { fd, .. }) => *fd as u64,
            None => number(&mut self.rng),
        };
        let device = &self.device;
        let done = self.counters.count(Kind::Ioctl, || device.ioctl(request, argument));
        let ours = req::ALL.iter().any(|(_, known)| *known == request);
        ensure!(
            self.privileged || !ours || done == Err(Errno::EPERM),
            "ioctl {request:#x} without the capability: {done:?}"
        );
        Ok(())
    }

    fn netlink(&mut self) -> Result<()> {
        let command = match self.rng.random_range(0..20) {
            0 => self.rng.random(),
            1..9 => command::CONNECT,
            9..12 => command::RECONFIGURE,
            12..15 => command::DISCONNECT,
            _ => command::STATUS,
        };
        let offered: Vec<Offered> = (0..self.rng.random_range(0..4)).map(|_| self.offered()).collect();
        let mut attributes = self.attributes(&offered);
        if self.rng.random_bool(0.2) {
            self.mutilate(&mut attributes);
        }
        let client = &self.client;
        let flags = if self.rng.random_bool(0.02) { self.rng.random::<u16>() & 0x0f00 } else { 0 };
        let call = || match client.call_bytes(command, flags, &attributes) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(refusal)) => Err(Ok(refusal.errno)),
            Err(error) => Err(Err(error)),
        };
        match self.counters.count(Kind::Netlink, call) {
            Ok(()) => ensure!(
                self.privileged || command == command::STATUS,
                "command {command} was done without the capability"
            ),
            Err(Ok(_)) => {}
            Err(Err(error)) if interrupted(&error) => self.client = Client::of(&self.family)?,
            Err(Err(error)) => return Err(error.context(format!("command {command} with {attributes:02x?}"))),
        }
        Ok(())
    }

    /// Each attribute that there is, sometimes, and some that there are not.
    fn attributes(&mut self, offered: &[Offered]) -> Vec<u8> {
        let rng = &mut self.rng;
        let mut list = Vec::new();
        for kind in (1..=attr::MAX).chain([attr::HANDOVER, attr::SOCKETS_TAKEN, 11, 0x3ff]) {
            let likely = match kind {
                attr::INDEX | attr::SIZE_BYTES | attr::SOCKETS => 0.9,
                attr::SERVER_FLAGS => 0.6,
                _ => 0.2,
            };
            if !rng.random_bool(likely) {
                continue;
            }
            list.push(match kind {
                // Each number is a device that stays: only some.
                attr::INDEX => {
                    attr_u32(kind, *[0, 0, 1, 1, 2, 3, 4, 1 << 20, u32::MAX].choose(rng).unwrap_or(&0))
                }
                attr::SIZE_BYTES if rng.random_bool(0.7) => attr_u64(kind, SIZE),
                attr::BLOCK_SIZE_BYTES if rng.random_bool(0.7) => {
                    attr_u64(kind, 512 << rng.random_range(0..5))
                }
                attr::SERVER_FLAGS if rng.random_bool(0.8) => {
                    attr_u64(kind, flag::HAS_FLAGS | flag::CAN_MULTI_CONN)
                }
                attr::TIMEOUT | attr::DEAD_CONN_TIMEOUT if rng.random_bool(0.7) => {
                    attr_u64(kind, rng.random_range(0..3))
                }
                attr::SOCKETS => {
                    let item = |Offered { fd, .. }: &Offered| {
                        attr_nested(attr::SOCK_ITEM, &[attr_u32(attr::SOCK_FD, *fd as u32)])
                    };
                    attr_nested(kind, &offered.iter().map(item).collect::<Vec<_>>())
                }
                attr::BACKEND_IDENTIFIER => DefaultNla::new(kind, bytes(rng, 40)),
                attr::HANDOVER => DefaultNla::new(kind, Vec::new()),
                _ => attr_u64(kind, number(rng)),
            });
            if rng.random_bool(0.03) {
                let length = rng.random_range(0..20);
                list.push(DefaultNla::new(kind, bytes(rng, length)));
            }
        }
        to_bytes(&list)
    }

    /// Changes, cuts or adds bytes.
    fn mutilate(&mut self, bytes_there: &mut Vec<u8>) {
        let rng = &mut self.rng;
        if bytes_there.is_empty() {
            *bytes_there = bytes(rng, 64);
            return;
        }
        let at = rng.random_range(0..bytes_there.len());
        match rng.random_range(0..4) {
            0 => bytes_there.truncate(at),
            1 => bytes_there.extend(bytes(rng, 64)),
            2 => bytes_there[at] ^= 1 << rng.random_range(0..8),
            _ => bytes_there[at] = rng.random(),
        }
    }
}

fn bytes(rng: &mut SmallRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        io == Some(std::io::ErrorKind::Interrupted) || cause.downcast_ref::<Errno>() == Some(&Errno::EINTR)
    })
}
