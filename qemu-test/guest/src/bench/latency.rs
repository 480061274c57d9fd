// SPDX-License-Identifier: GPL-2.0
//! How long attaching, the first read and detaching take, by netlink and by ioctl, after whatever the last attachment left.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use netlink_packet_core::DefaultNla;

use super::Subject;
use super::job::SIZE;
use super::memory::Memory;
use super::meter::{Meter, now};
use super::server::{Server, Transport};
use crate::device::{self, Device, flag, open_direct, read_direct, req};
use crate::netlink::{self, attr, attr_u64};
use crate::process::PATIENCE;

/// Nanoseconds, one of each kind a time.
#[derive(Default, serde::Serialize)]
pub struct Latencies {
    pub connect: Vec<u64>,
    /// From the same start as `connect`, and with it.
    pub first_read: Vec<u64>,
    pub disconnect: Vec<u64>,
}

/// What the last attachment leaves to the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// Somebody who has its disk open.
    Opener,
    /// A disk that has had partitions. The next one has them as well.
    Partitions,
}

impl Left {
    pub const ALL: [Left; 3] = [Left::Nothing, Left::Opener, Left::Partitions];

    /// Whether that can be measured: nbd.ko attaches nothing that somebody has open.
    pub fn suits(self, subject: Subject) -> bool {
        (self, subject) != (Left::Opener, Subject::Nbd)
    }

    /// How many there may be (`max_part`).
    pub fn partitions(self) -> u32 {
        if self == Left::Partitions { 3 } else { 0 }
    }

    /// The interface, and what was left, as a line has it.
    pub fn after(self, interface: &str) -> String {
        match self {
            Left::Nothing => interface.to_owned(),
            Left::Opener => format!("{interface}, the last disk still open"),
            Left::Partitions => format!("{interface}, the last disk with partitions"),
        }
    }
}

/// Has attachments leave it.
struct Leaver<'a> {
    left: Left,
    memory: &'a Memory,
    held: Option<File>,
}

const SECTOR: usize = 512;

impl Leaver<'_> {
    fn new(left: Left, memory: &Memory) -> Result<Leaver<'_>> {
        let leaver = Leaver { left, memory, held: None };
        if left == Left::Partitions {
            let mut table = [0; SECTOR];
            for (place, start) in [(446, 2048u32), (462, 4096)] {
                table[place + 4] = 0x83;
                table[place + 8..place + 12].copy_from_slice(&start.to_le_bytes());
                table[place + 12..place + 16].copy_from_slice(&2048u32.to_le_bytes());
            }
            table[510..].copy_from_slice(&[0x55, 0xaa]);
            leaver.store(&table)?;
        }
        Ok(leaver)
    }

    fn store(&self, sector: &[u8; SECTOR]) -> Result<()> {
        let range = self.memory.range(0, SECTOR).context("an export without a sector")?;
        self.memory.store(&range, sector);
        Ok(())
    }

    /// The device is attached, and was opened and read.
    fn attached(&mut self) -> Result<()> {
        match self.left {
            Left::Nothing => {}
            // The last one is let go.
            Left::Opener => self.held = Some(File::open(device::node(0))?),
            Left::Partitions => {
                ensure!(device::sysfs(0, "nbd0p2/size").is_some(), "the second partition is not there")
            }
        }
        Ok(())
    }
}

impl Drop for Leaver<'_> {
    fn drop(&mut self) {
        if self.left == Left::Partitions {
            let _ = self.store(&[0; SECTOR]);
        }
    }
}

/// What CONNECT is told beside sockets and size.
pub fn options(connections: usize) -> Vec<DefaultNla> {
    let multi = if connections > 1 { flag::CAN_MULTI_CONN } else { 0 };
    vec![attr_u64(attr::BLOCK_SIZE_BYTES, 512), attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | multi)]
}

/// A server for somebody who only attaches.
pub fn server(memory: &Arc<Memory>, connections: usize) -> Result<Server> {
    Server::new(Transport::Unix, connections, memory, &Arc::new(Meter::new(u64::MAX, u64::MAX)))
}

/// What whoever has attached a device wants of it.
fn read(index: u32) -> Result<()> {
    read_direct(&open_direct(device::node(index))?, 0, 4096).map(drop).context("the first read")
}

/// CONNECT; how long it took.
pub fn connect(client: &netlink::Client, index: u32, server: &Server, connections: usize) -> Result<u64> {
    let fds: Vec<RawFd> = server.sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let start = now();
    let answer = client.connect(Some(index), SIZE, &fds, &options(connections))?;
    let time = now() - start;
    answer.map_err(|refusal| anyhow!("CONNECT of nbd{index}: {refusal:?}"))?;
    Ok(time)
}

/// DISCONNECT; how long it took.
pub fn disconnect(client: &netlink::Client, index: u32) -> Result<u64> {
    let start = now();
    let answer = client.disconnect(index)?;
    let time = now() - start;
    answer.map_err(|refusal| anyhow!("DISCONNECT of nbd{index}: {refusal:?}"))?;
    Ok(time)
}

impl Latencies {
    /// From the request to the kernel's word that it is done, and on until something is read.
    pub fn once_by_netlink(
        &mut self,
        client: &netlink::Client,
        index: u32,
        connections: usize,
        memory: &Arc<Memory>,
        attached: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let server = server(memory, connections)?;
        let start = now();
        self.connect.push(connect(client, index, &server, connections)?);
        read(index)?;
        self.first_read.push(now() - start);
        attached()?;
        self.disconnect.push(disconnect(client, index)?);
        server.ended()?;
        until("the device to be idle", || !device::attached(index))
    }

    /// Without the first time, which came after something else.
    fn without_first(mut self) -> Latencies {
        for times in [&mut self.connect, &mut self.first_read, &mut self.disconnect] {
            times.remove(0);
        }
        self
    }
}

/// So many times by netlink.
pub fn by_netlink(memory: &Arc<Memory>, times: usize, left: Left) -> Result<Latencies> {
    let client = netlink::Client::open()?;
    let mut leaver = Leaver::new(left, memory)?;
    let mut found = Latencies::default();
    for _ in 0..=times {
        found.once_by_netlink(&client, 0, 1, memory, || leaver.attached())?;
    }
    Ok(found.without_first())
}

/// From the first ioctl until the device shows its size, and on until something is read; from NBD_DISCONNECT until
/// NBD_DO_IT and the NBD_CLEAR_SOCK after it, as clients do it, have returned.
pub fn by_ioctl(memory: &Arc<Memory>, times: usize, left: Left) -> Result<Latencies> {
    let mut leaver = Leaver::new(left, memory)?;
    let mut found = Latencies::default();
    for _ in 0..=times {
        let server = server(memory, 1)?;
        let device = Device::open(0)?;
        let start = now();
        let steps = [
            (req::SET_SOCK, server.sockets[0].as_raw_fd() as u64),
            (req::SET_BLKSIZE, 512),
            (req::SET_SIZE_BLOCKS, SIZE / 512),
            (req::SET_FLAGS, flag::HAS_FLAGS),
        ];
        for (command, argument) in steps {
            device.ioctl(command, argument).with_context(|| format!("ioctl {command:#x} {argument}"))?;
        }
        let theirs = device.same_open()?;
        let client = std::thread::spawn(move || {
            let result = theirs.ioctl(req::DO_IT, 0);
            let _ = theirs.ioctl(req::CLEAR_QUE, 0);
            let _ = theirs.ioctl(req::CLEAR_SOCK, 0);
            result
        });
        until("the device to run", || {
            client.is_finished() || device::attached(0) && device::capacity(0) == SIZE
        })?;
        found.connect.push(now() - start);
        ensure!(!client.is_finished(), "NBD_DO_IT returned at once: {:?}", client.join());
        read(0)?;
        found.first_read.push(now() - start);
        leaver.attached()?;
        let start = now();
        device.ioctl(req::DISCONNECT, 0).context("NBD_DISCONNECT")?;
        let result = client.join().map_err(|_| anyhow!("the client panicked"))?;
        found.disconnect.push(now() - start);
        ensure!(result == Ok(0), "NBD_DO_IT returned {result:?}");
        drop(device);
        server.ended()?;
        until("the device to be idle", || !device::attached(0))?;
    }
    Ok(found.without_first())
}

/// Waits without a pause, which would be measured too.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = now();
    while !condition() {
        ensure!(u128::from(now() - start) < PATIENCE.as_nanos(), "waited for {what}, in vain");
        std::thread::yield_now();
    }
    Ok(())
}
