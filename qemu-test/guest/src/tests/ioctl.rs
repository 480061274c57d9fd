// SPDX-License-Identifier: GPL-2.0
//! Every ioctl, with good and with bad arguments: what nbd.ko answers is what is asked for.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
use nix::sys::wait::WaitStatus;

use super::{Checks, Context, Test, skip};
use crate::attach::{Attachment, Setup, with_attached};
use crate::device::{Device, flag, raw_ioctl, req, round_trip, wait_attached};
use crate::process::fork_child;
use crate::server::{Export, Server, Transport};

pub const TESTS: &[Test] = &[
    Test::new("ioctl.blksize", "NBD_SET_BLKSIZE takes powers of two from 512 up to 64 KiB", blksize).quick(),
    Test::new("ioctl.size", "NBD_SET_SIZE and NBD_SET_SIZE_BLOCKS refuse what overflows", size).quick(),
    Test::new("ioctl.bad_fd", "NBD_SET_SOCK refuses closed and impossible descriptors", bad_fd),
    Test::new("ioctl.not_a_stream", "NBD_SET_SOCK refuses what is not a TCP or UNIX stream", not_a_stream),
    Test::new("ioctl.transports", "TCP over v4 and v6 and UNIX streams are taken and serve", transports)
        .quick(),
    Test::new(
        "ioctl.unknown",
        "unknown commands get ENOTTY, foreign ones what the block layer says",
        unknown,
    ),
    Test::new("ioctl.compatibility", "NBD_CLEAR_QUE and NBD_PRINT_DEBUG do nothing", compatibility),
    Test::new("ioctl.timeout", "NBD_SET_TIMEOUT refuses what cannot be counted in milliseconds", timeout)
        .known_on_nbd("it takes any, and cuts it off"),
    Test::new("ioctl.do_it_unset", "NBD_DO_IT without a socket is EINVAL", do_it_unset),
    Test::new("ioctl.running", "a running device refuses a second NBD_DO_IT and NBD_SET_SOCK", running),
    Test::new("ioctl.idle", "NBD_DISCONNECT and NBD_CLEAR_SOCK of an idle device succeed", idle),
    Test::new(
        "ioctl.clear_in_setup",
        "NBD_CLEAR_SOCK between sizes and socket, as nbd-client has it, keeps them",
        clear_in_setup,
    )
    .quick(),
    Test::new("ioctl.multi_conn_flag", "two sockets need NBD_FLAG_CAN_MULTI_CONN", multi_conn_flag),
    Test::new("ioctl.most_sockets", "a setup takes 4096 sockets, and the next one is ENOSPC", most_sockets)
        .known_on_nbd("it takes any number"),
    Test::new("ioctl.unprivileged", "every ioctl needs CAP_SYS_ADMIN", unprivileged),
    Test::new("ioctl.compat", "32-bit callers get the same answers, and can attach and detach", compat),
];

const EINVAL: Result<i32, Errno> = Err(Errno::EINVAL);
const DONE: Result<i32, Errno> = Ok(0);

fn blksize(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    let bad = [1, 3, 100, 256, 511, 513, 1000, 1536, 1 << 17, 1 << 31, 1 << 32, 1 << 40, 1 << 63, u64::MAX];
    for size in bad {
        checks.equal(&format!("block size {size}"), device.ioctl(req::SET_BLKSIZE, size), EINVAL);
    }
    for size in [0, 512, 1024, 2048, 4096, 8192, 65536] {
        checks.equal(&format!("block size {size}"), device.ioctl(req::SET_BLKSIZE, size), DONE);
    }
    checks.done()
}

fn size(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    let mut try_size = |name: &str, cmd: u32, arg: u64, want: Result<i32, Errno>| {
        checks.equal(&format!("{name} {arg:#x}"), device.ioctl(cmd, arg), want);
    };
    let name = "NBD_SET_SIZE";
    for negative in [1 << 63, (1 << 63) + 4096, u64::MAX] {
        try_size(name, req::SET_SIZE, negative, EINVAL);
    }
    for good in [0, 512, 1000, 1 << 20, 1 << 40, (1 << 63) - 1, (1 << 63) - 512] {
        try_size(name, req::SET_SIZE, good, DONE);
    }
    try_size("NBD_SET_BLKSIZE", req::SET_BLKSIZE, 4096, DONE);
    let name = "NBD_SET_SIZE_BLOCKS of 4096";
    for overflowing in [1 << 51, 1 << 52, (1 << 52) + 1, 1 << 62, 1 << 63, u64::MAX] {
        try_size(name, req::SET_SIZE_BLOCKS, overflowing, EINVAL);
    }
    for good in [0, 1, 1 << 20, (1 << 51) - 1] {
        try_size(name, req::SET_SIZE_BLOCKS, good, DONE);
    }
    checks.done()
}

fn bad_fd(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    let set = |fd: u64| device.ioctl(req::SET_SOCK, fd);
    let closed = {
        let file = File::open("/dev/null")?;
        file.as_raw_fd() as u64
    };
    checks.equal("a closed descriptor", set(closed), Err(Errno::EBADF));
    checks.equal("descriptor 1000000", set(1_000_000), Err(Errno::EBADF));
    checks.equal("descriptor 2^31 - 1", set((1 << 31) - 1), Err(Errno::EBADF));
    for beyond in [1 << 31, 1 << 32, (1 << 32) + 3, 1 << 63, u64::MAX] {
        checks.equal(&format!("descriptor {beyond:#x}"), set(beyond), EINVAL);
    }
    // 2^32 + a good socket must not be taken for that socket.
    let server = Server::new(Export::memory(1 << 20)?);
    let socket = server.connect(Transport::Unix)?;
    checks.equal("2^32 + a good socket", set((1 << 32) + socket.as_raw_fd() as u64), EINVAL);
    checks.done()
}

fn not_a_stream(context: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    let mut refused = |what: &str, fd: RawFd, want: Errno| {
        checks.equal(what, device.ioctl(req::SET_SOCK, fd as u64), Err(want));
    };
    let (pipe, _other) = crate::process::pipe()?;
    refused("a pipe", pipe.as_raw_fd(), Errno::ENOTSOCK);
    let file = File::create(context.scratch.join("file"))?;
    refused("a regular file", file.as_raw_fd(), Errno::ENOTSOCK);
    refused("the device itself", device.fd(), Errno::ENOTSOCK);
    refused("a UDP socket over IPv4", UdpSocket::bind("127.0.0.1:0")?.as_raw_fd(), Errno::EINVAL);
    refused("a UDP socket over IPv6", UdpSocket::bind("[::1]:0")?.as_raw_fd(), Errno::EINVAL);
    let (datagram, _other) = UnixDatagram::pair()?;
    refused("a UNIX datagram socket", datagram.as_raw_fd(), Errno::EINVAL);
    let flags = SockFlag::SOCK_CLOEXEC;
    let (packet, _other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    refused("a UNIX seqpacket socket", packet.as_raw_fd(), Errno::EINVAL);
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, None)?;
    refused("a netlink socket", netlink.as_raw_fd(), Errno::EINVAL);
    checks.done()?;
    // None of them has become part of the setup.
    ensure!(device.ioctl(req::DO_IT, 0) == EINVAL, "NBD_DO_IT found a socket after refusals");
    drop(device);
    serves(Transport::Unix)
}

/// Attaches, writes and reads back.
fn serves(transport: Transport) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let setup = Setup::for_server(&server).transport(transport);
    with_attached(&server, setup, |_| {
        let direct = crate::device::open_direct("/dev/nbd0")?;
        round_trip(&direct, 8192, &[0x5a; 16384])
    })
    .with_context(|| format!("over {transport:?}"))
}

fn transports(_: &Context) -> Result<()> {
    for transport in [Transport::Unix, Transport::Tcp4, Transport::Tcp6] {
        serves(transport)?;
    }
    Ok(())
}

fn unknown(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    for cmd in [0xab0b, 0xab0c, 0xab7f, 0xabff, 0x4004_ab00, 0xc008_ab02] {
        checks.equal(&format!("command {cmd:#x}"), device.ioctl(cmd, 0), Err(Errno::ENOTTY));
    }
    // The block layer hands commands that it does not know to the driver, which knows only type 0xab.
    for cmd in [0xac00, 0x0000, 0x5301, 0x4c82, 0x8004_6601] {
        checks.equal(&format!("command {cmd:#x}"), device.ioctl(cmd, 0), EINVAL);
    }
    checks.done()
}

fn compatibility(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    for arg in [0, 1, u64::MAX] {
        checks.equal("NBD_CLEAR_QUE", device.ioctl(req::CLEAR_QUE, arg), DONE);
        checks.equal("NBD_PRINT_DEBUG", device.ioctl(req::PRINT_DEBUG, arg), DONE);
        checks.equal("NBD_SET_FLAGS", device.ioctl(req::SET_FLAGS, arg), DONE);
    }
    for seconds in [0, 1, 30, 3600] {
        checks.equal("NBD_SET_TIMEOUT", device.ioctl(req::SET_TIMEOUT, seconds), DONE);
    }
    checks.done()
}

fn timeout(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    let longest = u64::from(u32::MAX / 1000);
    checks.equal("the longest", device.ioctl(req::SET_TIMEOUT, longest), DONE);
    for seconds in [longest + 1, 1 << 32, (1 << 32) + 30, 1 << 63, u64::MAX] {
        checks.equal(&format!("{seconds} s"), device.ioctl(req::SET_TIMEOUT, seconds), EINVAL);
    }
    checks.done()
}

fn do_it_unset(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    checks.equal("NBD_DO_IT of a fresh device", device.ioctl(req::DO_IT, 0), EINVAL);
    checks.equal("NBD_SET_SIZE", device.ioctl(req::SET_SIZE, 1 << 20), DONE);
    checks.equal("NBD_DO_IT with a size only", device.ioctl(req::DO_IT, 0), EINVAL);
    checks.done()?;
    drop(device);
    serves(Transport::Unix)
}

fn running(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    with_attached(&server, Setup::for_server(&server), |device| {
        let mut checks = Checks::default();
        let busy = Err(Errno::EBUSY);
        let second = server.connect(Transport::Unix)?;
        let set = |device: &Device| device.ioctl(req::SET_SOCK, second.as_raw_fd() as u64);
        checks.equal("a second NBD_DO_IT", device.ioctl(req::DO_IT, 0), busy);
        checks.equal("NBD_SET_SOCK of a running device", set(device), busy);
        let other = Device::open(0)?;
        checks.equal("NBD_DO_IT by another open", other.ioctl(req::DO_IT, 0), busy);
        checks.equal("NBD_SET_SOCK by another open", set(&other), busy);
        drop(second);
        let mut process = fork_child(&[], |_| {
            let device = Device::open(0)?;
            ensure!(device.ioctl(req::DO_IT, 0) == busy, "another process's NBD_DO_IT is not EBUSY");
            Ok(())
        })?;
        process.success()?;
        checks.done()?;
        round_trip(&crate::device::open_direct("/dev/nbd0")?, 0, &[7; 4096])
    })
}

fn idle(_: &Context) -> Result<()> {
    let mut checks = Checks::default();
    for cmd in [("NBD_DISCONNECT", req::DISCONNECT), ("NBD_CLEAR_SOCK", req::CLEAR_SOCK)] {
        let device = Device::open(0)?;
        for _ in 0..3 {
            checks.equal(cmd.0, device.ioctl(cmd.1, 0), DONE);
        }
    }
    checks.done()?;
    serves(Transport::Unix)
}

fn clear_in_setup(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let device = Device::open(0)?;
    device.ioctl(req::SET_BLKSIZE, 1024)?;
    device.ioctl(req::SET_SIZE_BLOCKS, 1024)?;
    device.ioctl(req::SET_FLAGS, flag::HAS_FLAGS | flag::SEND_FLUSH)?;
    device.ioctl(req::CLEAR_SOCK, 0)?;
    let socket = server.connect(Transport::Unix)?;
    device.ioctl(req::SET_SOCK, socket.as_raw_fd() as u64)?;
    drop(socket);
    let attachment = Attachment::start(&device)?;
    let running = attachment.wait_running(1 << 20);
    let mut checks = Checks::default();
    checks.that(&format!("size kept: {running:?}"), running.is_ok());
    checks.equal("block size", device.block_size()?, 1024);
    checks.equal("write cache", device.sysfs("queue/write_cache").as_deref(), Some("write back"));
    attachment.detach()?;
    checks.done()
}

fn multi_conn_flag(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let device = Device::open(0)?;
    let mut setup = Setup::for_server(&server).connections(2);
    setup.flags &= !flag::CAN_MULTI_CONN;
    setup.prepare(&device, &server)?;
    ensure!(device.ioctl(req::DO_IT, 0) == EINVAL, "NBD_DO_IT with two sockets and no flag");
    drop(device);
    server.wait_closed()?;
    serves(Transport::Unix)
}

fn most_sockets(_: &Context) -> Result<()> {
    const MOST: usize = 4096;
    let server = Server::new(Export::memory(1 << 20)?);
    // The same one many times is as good as many.
    let socket = server.connect(Transport::Unix)?;
    let device = Device::open(0)?;
    let set = || device.ioctl(req::SET_SOCK, socket.as_raw_fd() as u64);
    for number in 0..MOST {
        ensure!(set() == DONE, "socket {number} was refused");
    }
    let beyond = set();
    ensure!(beyond == Err(Errno::ENOSPC), "socket {MOST} gave {beyond:?}");
    device.ioctl(req::CLEAR_SOCK, 0)?;
    drop((device, socket));
    server.wait_closed()?;
    serves(Transport::Unix)
}

fn unprivileged(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let server = Server::new(Export::memory(1 << 20)?);
    let socket: OwnedFd = server.connect(Transport::Unix)?;
    let (fd, socket_fd) = (device.fd(), socket.as_raw_fd());
    let mut child = fork_child(&[fd, socket_fd], move |_| {
        let nobody = nix::unistd::Uid::from_raw(65534);
        nix::unistd::setresuid(nobody, nobody, nobody)?;
        let mut checks = Checks::default();
        for (name, cmd) in req::ALL {
            let arg = if cmd == req::SET_SOCK { socket_fd as u64 } else { 4096 };
            checks.equal(&format!("NBD_{name}"), raw_ioctl(fd, cmd, arg), Err(Errno::EPERM));
        }
        checks.done()
    })?;
    child.success()
}

/// `ioctl` by the 32-bit system call gate, as a 32-bit program makes it.
#[cfg(target_arch = "x86_64")]
fn ioctl32(fd: RawFd, cmd: u32, arg: u32) -> Result<i32, Errno> {
    const NR_IOCTL_I386: u32 = 54;
    let result: i32;
    // SAFETY: the commands used here do not touch our memory. rbx, which LLVM reserves, is saved and restored;
    // the gate clobbers r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {fd:r}",
            "int 0x80",
            "xchg rbx, {fd:r}",
            fd = inout(reg) u64::from(fd as u32) => _,
            inout("eax") NR_IOCTL_I386 => result,
            in("ecx") cmd,
            in("edx") arg,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result) }
}

/// Whether the kernel has that gate; a process that uses it else is killed.
fn has_gate() -> Result<bool> {
    let mut child = fork_child(&[], |_| {
        let _ = ioctl32(0, 0, 0);
        Ok(())
    })?;
    Ok(!matches!(child.wait()?, WaitStatus::Signaled(..)))
}

fn compat(_: &Context) -> Result<()> {
    if !has_gate()? {
        return skip("the kernel has no 32-bit system calls");
    }
    const SIZE: u64 = 1 << 20;
    let server = Server::new(Export::memory(SIZE)?);
    let socket = server.connect(Transport::Unix)?;
    let fd = socket.as_raw_fd();
    let mut client = fork_child(&[fd], move |ready| {
        let device = Device::open(0)?;
        let mut checks = Checks::default();
        let mut call = |what: &str, cmd: u32, arg: u32, want: Result<i32, Errno>| {
            checks.equal(what, ioctl32(device.fd(), cmd, arg), want);
        };
        call("NBD_PRINT_DEBUG", req::PRINT_DEBUG, 0, DONE);
        call("NBD_CLEAR_QUE", req::CLEAR_QUE, 0, DONE);
        call("NBD_SET_BLKSIZE 3", req::SET_BLKSIZE, 3, EINVAL);
        call("NBD_SET_SOCK -1", req::SET_SOCK, u32::MAX, EINVAL);
        call("unknown", 0xab7f, 0, Err(Errno::ENOTTY));
        call("NBD_DO_IT without a socket", req::DO_IT, 0, EINVAL);
        call("NBD_CLEAR_SOCK", req::CLEAR_SOCK, 0, DONE);
        call("NBD_SET_SOCK", req::SET_SOCK, fd as u32, DONE);
        // Three gigabytes and more are no negative number.
        call("NBD_SET_SIZE", req::SET_SIZE, 0xf000_0000, DONE);
        call("NBD_SET_BLKSIZE 4096", req::SET_BLKSIZE, 4096, DONE);
        call("NBD_SET_SIZE_BLOCKS", req::SET_SIZE_BLOCKS, (SIZE / 4096) as u32, DONE);
        call("NBD_SET_TIMEOUT", req::SET_TIMEOUT, 30, DONE);
        call("NBD_SET_FLAGS", req::SET_FLAGS, (flag::HAS_FLAGS | flag::SEND_FLUSH) as u32, DONE);
        checks.done()?;
        ready.tell("set up")?;
        let ran = ioctl32(device.fd(), req::DO_IT, 0);
        ensure!(ran == DONE, "NBD_DO_IT returned {ran:?}");
        Ok(())
    })?;
    drop(socket);
    client.expect_line("set up")?;
    wait_attached(0)?;
    let device = Device::open(0)?;
    let mut checks = Checks::default();
    checks.equal("size", device.size()?, SIZE);
    checks.equal("block size", device.block_size()?, 4096);
    checks.equal("write cache", device.sysfs("queue/write_cache").as_deref(), Some("write back"));
    checks.equal("time-out", device.sysfs("queue/io_timeout").as_deref(), Some("30000"));
    round_trip(&crate::device::open_direct("/dev/nbd0")?, 8192, &[0x32; 4096])?;
    checks.equal("NBD_DISCONNECT", ioctl32(device.fd(), req::DISCONNECT, 0), DONE);
    client.success()?;
    checks.done()
}
