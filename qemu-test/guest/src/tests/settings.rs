// SPDX-License-Identifier: GPL-2.0
//! What processes say of an export before they bring a socket: it keeps no other out, and each attaches what it has said
//! itself.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context as _, Result, ensure};

use super::{Context, Test};
use crate::device::{capacity, node, req, wait_attached, wait_idle};
use crate::process::hold_open;
use crate::puppet::Puppet;
use crate::server::{Export, Server, Transport};

pub const TESTS: &[Test] = &[
    Test::new(
        "settings.cleared",
        "a process that has set a socket and cleared it lives on, with a holder: another attaches",
        |_| after(&[Said::Socket, Said::Clear]),
    ),
    Test::new("settings.timeout", "so it does after NBD_SET_TIMEOUT alone", |_| after(&[Said::Timeout])),
    Test::new("settings.size", "and after a size", |_| after(&[Said::Size])),
    Test::new(
        "settings.raced",
        "two processes set up step by step as nbd-client does: the first socket has it, with its own size",
        raced,
    )
    .known_on_nbd("both set the one size that there is, and one clears the other's socket"),
];

const SIZE: u64 = 1 << 20;
const OTHER_SIZE: u64 = 1 << 19;

#[derive(Clone, Copy)]
enum Said {
    Socket,
    Clear,
    Timeout,
    Size,
}

fn server() -> Result<(Server, OwnedFd)> {
    let server = Server::new(Export::memory(SIZE)?);
    let socket = server.connect(Transport::Unix)?;
    Ok((server, socket))
}

fn say(puppet: &mut Puppet, name: &str, cmd: u32, arg: u64) -> Result<()> {
    puppet.ioctl(cmd, arg)?.map(drop).with_context(|| name.to_owned())
}

/// Runs what it has set up; another disconnects it.
fn runs(puppet: &mut Puppet, other: &mut Puppet, size: u64, server: &Server) -> Result<()> {
    puppet.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    let there = capacity(0);
    say(other, "NBD_DISCONNECT", req::DISCONNECT, 0)?;
    puppet.finish()?.context("NBD_DO_IT")?;
    ensure!(there == size, "the size is {there}, not {size}");
    server.wait_closed()?;
    wait_idle(0)
}

/// One process says something and lives on, with the device open; another one attaches it.
fn after(said: &[Said]) -> Result<()> {
    let holder = hold_open(node(0))?;
    let (first_server, first_socket) = server()?;
    let (server, socket) = server()?;
    let (first_fd, fd) = (first_socket.as_raw_fd(), socket.as_raw_fd());
    let mut first = Puppet::new(0, &[first_fd])?;
    let mut second = Puppet::new(0, &[fd])?;
    for said in said {
        match said {
            Said::Socket => say(&mut first, "NBD_SET_SOCK", req::SET_SOCK, first_fd as u64)?,
            Said::Clear => say(&mut first, "NBD_CLEAR_SOCK", req::CLEAR_SOCK, 0)?,
            Said::Timeout => say(&mut first, "NBD_SET_TIMEOUT", req::SET_TIMEOUT, 7)?,
            Said::Size => say(&mut first, "NBD_SET_SIZE", req::SET_SIZE, OTHER_SIZE)?,
        }
    }
    say(&mut second, "another's NBD_SET_SIZE", req::SET_SIZE, SIZE)?;
    say(&mut second, "another's NBD_SET_SOCK", req::SET_SOCK, fd as u64)?;
    drop((first_socket, socket));
    runs(&mut second, &mut first, SIZE, &server)?;
    drop((first, holder));
    first_server.wait_closed()
}

fn raced(_: &Context) -> Result<()> {
    let (first_server, first_socket) = server()?;
    let (second_server, second_socket) = server()?;
    let (first_fd, second_fd) = (first_socket.as_raw_fd(), second_socket.as_raw_fd());
    let mut first = Puppet::new(0, &[first_fd])?;
    let mut second = Puppet::new(0, &[second_fd])?;
    say(&mut first, "the first one's size", req::SET_SIZE, SIZE)?;
    say(&mut second, "the second one's size", req::SET_SIZE, OTHER_SIZE)?;
    say(&mut second, "the second one's clear", req::CLEAR_SOCK, 0)?;
    say(&mut second, "the second one's socket", req::SET_SOCK, second_fd as u64)?;
    // It is late, and hits nobody by that.
    say(&mut first, "the first one's clear", req::CLEAR_SOCK, 0)?;
    let refused = first.ioctl(req::SET_SOCK, first_fd as u64)?;
    ensure!(refused == Err(nix::errno::Errno::EBUSY), "the first one's socket: {refused:?}");
    drop((first_socket, second_socket));
    runs(&mut second, &mut first, OTHER_SIZE, &second_server)?;
    // And what it has said stands, for the next time.
    say(&mut first, "the first one's socket", req::SET_SOCK, first_fd as u64)?;
    runs(&mut first, &mut second, SIZE, &first_server)
}
