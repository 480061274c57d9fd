// SPDX-License-Identifier: GPL-2.0
//! CONNECT and DISCONNECT of what cannot be: refused, with a reason, and nothing is changed.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use anyhow::{Context as _, Result, ensure};
use netlink_packet_core::DefaultNla;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::attached::{Attached, fds, sockets, speaks};
use super::{connected, ok};
use crate::device::{attached, capacity, flag, open_direct, read_direct};
use crate::modules::Driver;
use crate::netlink::{
    Answer, Client, Message, Refusal, attr, attr_nested, attr_sockets, attr_u32, attr_u64, command, to_bytes,
};
use crate::server::{Export, Server};
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("netlink.connect_refused", "CONNECT refuses what is missing, malformed or impossible", refused)
        .quick(),
    Test::new(
        "netlink.connect_sockets",
        "CONNECT refuses file descriptors that are no stream sockets",
        not_streams,
    ),
    Test::new(
        "netlink.connect_refused_whole",
        "a refused CONNECT leaves the sockets that it was offered, and makes no device",
        whole,
    )
    .known_on_nbd("it shuts down the sockets that came before the bad one, and has made the device"),
    Test::new("netlink.connect_timeouts", "CONNECT refuses time-outs that cannot be counted", timeouts)
        .known_on_nbd("it takes any, and cuts them off"),
    Test::new(
        "netlink.connect_odd",
        "CONNECT passes over what it does not know, and the last of many counts",
        odd,
    ),
    Test::new(
        "netlink.connect_listening",
        "a socket that only listens serves nobody, and can be detached",
        listening,
    ),
    Test::new(
        "netlink.disconnect_refused",
        "DISCONNECT refuses what is missing, malformed or not there",
        disconnect,
    ),
];

pub const SIZE: u64 = 1 << 20;

pub fn bytes(number: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(number, value.to_vec())
}

/// An item of the list of sockets.
pub fn item(inner: &[DefaultNla]) -> DefaultNla {
    attr_nested(attr::SOCK_ITEM, inner)
}

/// Looks at a refusal: its errno, and the reason that goes with it, which nbd.ko does not always tell.
pub fn judge<T: std::fmt::Debug>(
    context: &Context,
    checks: &mut Checks,
    what: &str,
    answer: Answer<T>,
    errno: Errno,
) -> Option<Refusal> {
    match answer {
        Ok(granted) => {
            checks.that(&format!("{what}: granted with {granted:?}"), false);
            None
        }
        Err(refusal) => {
            checks.equal(what, refusal.errno, errno);
            let told = context.driver == Driver::Nbd || !refusal.text.is_empty() || refusal.missing.is_some();
            checks.that(&format!("{what}: no reason is told"), told);
            println!("{what}: {} {}", refusal.errno, refusal.text);
            Some(refusal)
        }
    }
}

/// What is wrong with a size, a block size or an item of the list of sockets; CONNECT and RECONFIGURE refuse it alike.
pub fn impossible(fd: RawFd) -> Vec<(&'static str, Vec<DefaultNla>, Errno)> {
    let fd = attr_u32(attr::SOCK_FD, fd as u32);
    let sockets = |inner: &[DefaultNla]| vec![attr_nested(attr::SOCKETS, inner)];
    let mut cases = vec![
        ("a size of 2^63", vec![attr_u64(attr::SIZE_BYTES, 1 << 63)], Errno::EINVAL),
        ("a size of 2^64 - 1", vec![attr_u64(attr::SIZE_BYTES, u64::MAX)], Errno::EINVAL),
        ("a size of 4 bytes", vec![attr_u32(attr::SIZE_BYTES, 1)], Errno::ERANGE),
        ("a size without a byte", vec![bytes(attr::SIZE_BYTES, &[])], Errno::ERANGE),
        ("a short block size", vec![attr_u32(attr::BLOCK_SIZE_BYTES, 512)], Errno::ERANGE),
        ("a short time-out", vec![bytes(attr::TIMEOUT, &[1; 7])], Errno::ERANGE),
        ("a short dead time-out", vec![bytes(attr::DEAD_CONN_TIMEOUT, &[1])], Errno::ERANGE),
        ("short server flags", vec![attr_u32(attr::SERVER_FLAGS, 1)], Errno::ERANGE),
        ("short client flags", vec![attr_u32(attr::CLIENT_FLAGS, 1)], Errno::ERANGE),
        ("a list of sockets of 3 bytes", vec![bytes(attr::SOCKETS, &[8, 0, 1])], Errno::ERANGE),
        ("a backend without a byte", vec![bytes(attr::BACKEND_IDENTIFIER, &[])], Errno::ERANGE),
        ("a socket in item 2", sockets(&[attr_nested(2, &[fd.clone()])]), Errno::EINVAL),
        ("a socket of 2 bytes", sockets(&[item(&[bytes(attr::SOCK_FD, &[1, 0])])]), Errno::EINVAL),
        ("a bad item behind a good one", sockets(&[item(&[fd]), attr_nested(7, &[])]), Errno::EINVAL),
    ];
    for (what, size) in [
        ("a block size of 1", 1),
        ("a block size of 256", 256),
        ("a block size of 513", 513),
        ("a block size of 768", 768),
        ("a block size of 2 MiB", 2 << 20),
        ("a block size of 2^32", 1 << 32),
        ("a block size of 2^32 + 512", (1 << 32) + 512),
        ("a block size of 2^63", 1 << 63),
        ("a block size of 2^64 - 1", u64::MAX),
    ] {
        cases.push((what, vec![attr_u64(attr::BLOCK_SIZE_BYTES, size)], Errno::EINVAL));
    }
    cases
}

/// A CONNECT of device 1 that would be granted, with an attribute less, or more behind it.
fn request(fd: RawFd, without: Option<u16>, more: &[DefaultNla]) -> Vec<u8> {
    use netlink_packet_core::Nla as _;
    let good = [
        attr_u32(attr::INDEX, 1),
        attr_u64(attr::SIZE_BYTES, SIZE),
        attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN),
        attr_sockets(&[fd]),
    ];
    let kept = good.into_iter().filter(|attribute| Some(attribute.kind()) != without);
    // Of two of a kind the last counts.
    to_bytes(&kept.chain(more.iter().cloned()).collect::<Vec<_>>())
}

/// Neither device is in use.
fn all_free(client: &Client, checks: &mut Checks, what: &str) -> Result<()> {
    for index in 0..2 {
        checks.that(&format!("{what}: device {index} is in use"), !connected(client, index)?);
        checks.equal(&format!("{what}: size"), (attached(index), capacity(index)), (false, 0));
    }
    Ok(())
}

fn refused(context: &Context) -> Result<()> {
    let client = Client::open()?;
    let server = Server::new(Export::memory(SIZE)?);
    let socket = &sockets(&server, 1)?[0];
    let fd = socket.as_raw_fd();
    let mut checks = Checks::default();
    let mut refuse = |what: &str, payload: &[u8], errno: Errno| -> Result<Option<Refusal>> {
        let answer: Answer<Vec<Message>> = client.call_bytes(command::CONNECT, 0, payload)?;
        let refusal = judge(context, &mut checks, what, answer, errno);
        all_free(&client, &mut checks, what)?;
        Ok(refusal)
    };
    for (what, number) in [("no size", attr::SIZE_BYTES), ("no sockets", attr::SOCKETS)] {
        let refusal = refuse(what, &request(fd, Some(number), &[]), Errno::EINVAL)?;
        let missing = refusal.and_then(|refusal| refusal.missing);
        ensure!(missing == Some(number.into()), "{what}: {missing:?} is told to be missing");
    }
    refuse("nothing at all", &[], Errno::EINVAL)?;
    // 31 partitions of each device leave 15 of the 20 bits of a minor number.
    for index in [32768, 1 << 20, i32::MAX as u32, 1 << 31, u32::MAX] {
        let what = format!("index {index}");
        refuse(&what, &request(fd, None, &[attr_u32(attr::INDEX, index)]), Errno::EINVAL)?;
    }
    refuse("an index of 3 bytes", &request(fd, None, &[bytes(attr::INDEX, &[1, 0, 0])]), Errno::ERANGE)?;
    for (what, more, errno) in impossible(fd) {
        if what.starts_with("a bad item behind") {
            // Whether the first socket is left alone is another test's question.
            continue;
        }
        refuse(what, &request(fd, None, &more), errno)?;
    }
    for (what, list) in [
        ("an empty list of sockets", attr_nested(attr::SOCKETS, &[])),
        ("a list of empty items", attr_nested(attr::SOCKETS, &[item(&[]), item(&[])])),
        ("a list of rubbish", bytes(attr::SOCKETS, &[0xff; 21])),
        ("a list that is a number", attr_u32(attr::SOCKETS, fd as u32)),
        (
            "a number in the place of an item",
            attr_nested(attr::SOCKETS, &[attr_u32(attr::SOCK_FD, fd as u32)]),
        ),
        ("an item that is cut off", bytes(attr::SOCKETS, &[12, 0, 1, 0, 8, 0, 1, 0])),
        ("an item of rubbish", attr_nested(attr::SOCKETS, &[bytes(attr::SOCK_ITEM, &[0xff; 8])])),
    ] {
        refuse(what, &request(fd, None, &[list]), Errno::EINVAL)?;
    }
    checks.done()?;
    speaks(socket)?;
    ok(client.call_bytes(command::CONNECT, 0, &request(fd, None, &[]))?).context("the good one")?;
    ok(client.disconnect(1)?)
}

fn not_streams(context: &Context) -> Result<()> {
    let client = Client::open()?;
    let mut checks = Checks::default();
    let mut refuse = |what: &str, fd: u32, errno: Errno| -> Result<()> {
        let answer: Answer<u32> = client.connect(Some(1), SIZE, &[fd as RawFd], &[])?;
        judge(context, &mut checks, what, answer, errno);
        all_free(&client, &mut checks, what)
    };
    let file = std::fs::File::open("/proc/self/exe")?;
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    let (datagram, _other) = UnixDatagram::pair()?;
    let packets = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let netlink = Client::open()?;
    let (reader, _writer) = crate::process::pipe()?;
    let closed = OwnedFd::from(file.try_clone()?).as_raw_fd();
    refuse("one that is closed", closed as u32, Errno::EBADF)?;
    refuse("one that there never was", 12345, Errno::EBADF)?;
    refuse("2^31 - 1", i32::MAX as u32, Errno::EBADF)?;
    refuse("2^31", 1 << 31, Errno::EINVAL)?;
    refuse("2^32 - 1", u32::MAX, Errno::EINVAL)?;
    refuse("a file", file.as_raw_fd() as u32, Errno::ENOTSOCK)?;
    refuse("a pipe", reader.as_raw_fd() as u32, Errno::ENOTSOCK)?;
    refuse("a UDP socket", udp.as_raw_fd() as u32, Errno::EINVAL)?;
    refuse("a UNIX datagram socket", datagram.as_raw_fd() as u32, Errno::EINVAL)?;
    refuse("a UNIX packet socket", packets.0.as_raw_fd() as u32, Errno::EINVAL)?;
    refuse("a netlink socket", netlink.fd() as u32, Errno::EINVAL)?;
    checks.done()
}

fn whole(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let server = Server::new(Export::memory(SIZE)?);
    let two = sockets(&server, 2)?;
    let flags = [attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN)];
    let mut checks = Checks::default();
    let good = fds(&two);
    for (what, list, options) in [
        ("the second one is no socket", vec![good[0], 12345], &flags[..]),
        ("two, to a server that has one", good.clone(), &[]),
    ] {
        for index in [1, 7] {
            let answer: Answer<u32> = client.connect(Some(index), SIZE, &list, options)?;
            checks.that(&format!("{what}: granted for {index}"), answer.is_err());
        }
        let devices: Vec<u32> = ok(client.status(None)?)?.iter().map(|device| device.index).collect();
        checks.equal(&format!("{what}: devices"), devices, vec![0, 1]);
        for socket in &two {
            checks.equal(what, speaks(socket).map_err(|error| format!("{error:#}")), Ok(()));
        }
    }
    checks.done()
}

fn timeouts(context: &Context) -> Result<()> {
    let client = Client::open()?;
    let server = Server::new(Export::memory(SIZE)?);
    let sockets = sockets(&server, 1)?;
    let mut checks = Checks::default();
    for number in [attr::TIMEOUT, attr::DEAD_CONN_TIMEOUT] {
        for seconds in [4_294_968, 1 << 32, 1 << 63, u64::MAX] {
            let what = format!("attribute {number} of {seconds}");
            let answer: Answer<u32> =
                client.connect(Some(1), SIZE, &fds(&sockets), &[attr_u64(number, seconds)])?;
            judge(context, &mut checks, &what, answer, Errno::EINVAL);
            all_free(&client, &mut checks, &what)?;
        }
    }
    speaks(&sockets[0])?;
    checks.done()
}

fn odd(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let server = Server::new(Export::memory(SIZE)?);
    let mut checks = Checks::default();
    let longer = |value: u64| [&value.to_ne_bytes()[..], &[0xee; 5]].concat();
    for (what, more) in [
        ("an attribute 11", vec![bytes(11, &[1, 2, 3])]),
        ("an attribute 99, nested", vec![attr_nested(99, &[attr_u32(1, 1)])]),
        ("a second size", vec![attr_u64(attr::SIZE_BYTES, 4096), attr_u64(attr::SIZE_BYTES, SIZE)]),
        ("a longer size", vec![bytes(attr::SIZE_BYTES, &longer(SIZE))]),
        ("a longer index", vec![bytes(attr::INDEX, &longer(1))]),
        ("a second index", vec![attr_u32(attr::INDEX, 0), attr_u32(attr::INDEX, 1)]),
        ("a block size of 0", vec![attr_u64(attr::BLOCK_SIZE_BYTES, 0)]),
        ("unknown client flags", vec![attr_u64(attr::CLIENT_FLAGS, 0xffff_ffff_ffff_fff0)]),
        ("a list of devices", vec![bytes(attr::DEVICE_LIST, &[0xff; 9])]),
        ("a backend without a NUL", vec![bytes(attr::BACKEND_IDENTIFIER, b"disk")]),
    ] {
        let sockets = sockets(&server, 1)?;
        let payload = request(sockets[0].as_raw_fd(), None, &more);
        let answer = client.call_bytes(command::CONNECT, 0, &payload)?.map(drop);
        checks.equal(what, answer.clone(), Ok(()));
        if answer.is_ok() {
            checks.equal(&format!("size with {what}"), capacity(1), SIZE);
            read_direct(&open_direct("/dev/nbd1")?, 0, 4096).with_context(|| what.to_owned())?;
            ok(client.disconnect(1)?)?;
            crate::device::wait_idle(1)?;
        }
    }
    // Of two lists the last counts, and the first one's socket is not touched.
    let [first, second] = [sockets(&server, 1)?, sockets(&server, 1)?];
    let payload = request(first[0].as_raw_fd(), None, &[attr_sockets(&fds(&second))]);
    ok(client.call_bytes(command::CONNECT, 0, &payload)?)?;
    speaks(&first[0])?;
    read_direct(&open_direct("/dev/nbd1")?, 0, 4096)?;
    ok(client.disconnect(1)?)?;
    speaks(&first[0])?;
    checks.done()
}

fn listening(_: &Context) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = Client::open()?;
    for _ in 0..3 {
        match client.connect(Some(0), SIZE, &[listener.as_raw_fd()], &[])? {
            Err(refusal) => println!("refused: {refusal:?}"),
            Ok(_) => {
                let read =
                    open_direct("/dev/nbd0").and_then(|file| Ok(read_direct(&file, 0, 4096)?)).map(drop);
                println!("attached, and a read got {read:?}");
                ensure!(read.is_err(), "a read succeeded without a server");
                ok(client.disconnect(0)?)?;
                crate::device::wait_idle(0)?;
            }
        }
    }
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[])?;
    device.works()?;
    device.detach()
}

fn disconnect(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[])?;
    let client = &device.client;
    let mut checks = Checks::default();
    for (what, payload, errno) in [
        ("no index", vec![], Errno::EINVAL),
        ("no such device", to_bytes(&[attr_u32(attr::INDEX, 2)]), Errno::EINVAL),
        ("no possible device", to_bytes(&[attr_u32(attr::INDEX, u32::MAX)]), Errno::EINVAL),
        ("a short index", to_bytes(&[bytes(attr::INDEX, &[0, 0])]), Errno::ERANGE),
        ("an index without a byte", to_bytes(&[bytes(attr::INDEX, &[])]), Errno::ERANGE),
        ("a length beyond the end", vec![9, 0, 1, 0, 0, 0, 0, 0], Errno::EINVAL),
    ] {
        let answer = client.call_bytes(command::DISCONNECT, 0, &payload)?;
        judge(context, &mut checks, what, answer, errno);
    }
    checks.equal("a free device", client.disconnect(1)?, Ok(()));
    device.works().context("after refused DISCONNECTs")?;
    ensure!(server.open_connections() == 1, "the server has {} connections", server.open_connections());
    device.detach()?;
    checks.done()
}
