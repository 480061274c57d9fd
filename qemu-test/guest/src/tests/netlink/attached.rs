// SPDX-License-Identifier: GPL-2.0
//! Devices that a test attaches by netlink, and the sockets that it offers.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netlink_packet_core::DefaultNla;

use super::ok;
use crate::device::{capacity, flag, node, open_direct, round_trip, sysfs, wait_idle};
use crate::modules::Driver;
use crate::netlink::{Answer, Client, Message, attr, attr_u64};
use crate::process::{PATIENCE, wait_for};
use crate::server::{Server, Transport, wire};

/// Bits of [`attr::CLIENT_FLAGS`].
pub mod client_flag {
    pub const DESTROY_ON_DISCONNECT: u64 = 1 << 0;
    pub const DISCONNECT_ON_CLOSE: u64 = 1 << 1;
}

pub fn client_flags(flags: u64) -> DefaultNla {
    attr_u64(attr::CLIENT_FLAGS, flags)
}

pub fn fds(sockets: &[OwnedFd]) -> Vec<RawFd> {
    sockets.iter().map(AsRawFd::as_raw_fd).collect()
}

pub fn sockets(server: &Server, count: usize) -> Result<Vec<OwnedFd>> {
    (0..count).map(|_| server.connect(Transport::Unix)).collect()
}

/// CONNECT with new connections to a server, which says that it can have several.
pub fn connect(
    client: &Client,
    index: Option<u32>,
    server: &Server,
    connections: usize,
    options: &[DefaultNla],
) -> Result<Answer<u32>> {
    let sockets = sockets(server, connections)?;
    connect_sockets(client, index, server.export().size(), &sockets, options)
}

/// The same with sockets that there are.
pub fn connect_sockets(
    client: &Client,
    index: Option<u32>,
    size: u64,
    sockets: &[OwnedFd],
    options: &[DefaultNla],
) -> Result<Answer<u32>> {
    // Of two flags the last counts.
    let mut all =
        vec![attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN | flag::SEND_FLUSH)];
    all.extend_from_slice(options);
    client.connect(index, size, &fds(sockets), &all)
}

/// A device that was attached by netlink, and is detached when this is dropped.
pub struct Attached {
    pub client: Client,
    pub index: u32,
}

impl Attached {
    /// Device 0.
    pub fn new(server: &Server, connections: usize, options: &[DefaultNla]) -> Result<Attached> {
        Attached::by(0, server, connections, options)
    }

    pub fn by(index: u32, server: &Server, connections: usize, options: &[DefaultNla]) -> Result<Attached> {
        let client = Client::open()?;
        let attached = ok(connect(&client, Some(index), server, connections, options)?)?;
        ensure!(attached == index, "device {attached} was attached instead of {index}");
        Ok(Attached { client, index })
    }

    /// RECONFIGURE of all but sockets, which must be granted.
    pub fn change(&self, options: &[DefaultNla]) -> Result<()> {
        ok(self.client.reconfigure(self.index, &[], options)?).map(drop)
    }

    /// RECONFIGURE with new connections to a server.
    pub fn offer(
        &self,
        server: &Server,
        count: usize,
        options: &[DefaultNla],
    ) -> Result<Answer<Vec<Message>>> {
        let sockets = sockets(server, count)?;
        self.client.reconfigure(self.index, &fds(&sockets), options)
    }

    pub fn resize(&self, size: u64) -> Result<()> {
        self.change(&[attr_u64(attr::SIZE_BYTES, size)])?;
        let now = capacity(self.index);
        ensure!(now == size, "the device has {now} bytes after a change to {size}");
        Ok(())
    }

    /// It does I/O.
    pub fn works(&self) -> Result<()> {
        round_trip(&open_direct(node(self.index))?, 4096, &[0x5a; 8192])
    }

    pub fn live(&self) -> Option<String> {
        sysfs(self.index, "nbd/live_connections")
    }

    /// Until the driver knows that so many connections are live. nbd.ko does not tell: it is given some time.
    pub fn wait_live(&self, count: usize) -> Result<()> {
        if !Driver::Rnbd.loaded() {
            std::thread::sleep(Duration::from_millis(300));
            return Ok(());
        }
        wait_for("the driver to count the live connections", || self.live() == Some(count.to_string()))
    }

    /// DISCONNECT, while somebody may have the device open.
    pub fn disconnect(self) -> Result<()> {
        ok(self.client.disconnect(self.index)?)
    }

    /// DISCONNECT of a device that nobody has open: it is idle.
    pub fn detach(self) -> Result<()> {
        ok(self.client.disconnect(self.index)?)?;
        wait_idle(self.index)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // A test that failed has more to say than this.
        let _ = self.client.disconnect(self.index);
    }
}

/// A socket that is a test's own still works: the server behind it answers a read.
pub fn speaks(socket: &OwnedFd) -> Result<()> {
    const LENGTH: u32 = 512;
    let mut stream = UnixStream::from(socket.try_clone()?);
    stream.set_read_timeout(Some(*PATIENCE))?;
    stream
        .write_all(&wire::read_request(0x7e57, 0, LENGTH))
        .context("a socket that was offered is shut down")?;
    let mut reply = [0; 16 + LENGTH as usize];
    stream.read_exact(&mut reply).context("a socket that was offered is of no use any more")?;
    ensure!(
        reply[..16] == wire::reply(wire::REPLY_MAGIC, 0, 0x7e57),
        "the server answered {:?}",
        &reply[..16]
    );
    Ok(())
}
