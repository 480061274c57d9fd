// SPDX-License-Identifier: GPL-2.0
//! What NBD_SET_FLAGS does to the queue's limits, and which commands the server then sees.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{Checks, Context, Test};
use crate::attach::{Setup, with_attached};
use crate::device::{Buffer, Device, errno_result, flag, io_errno, open_direct, read_direct, write_direct};
use crate::server::wire::flags as command_flag;
use crate::server::{Command, Export, Request, Server};

pub const TESTS: &[Test] = &[
    Test::new("flags.limits", "queue limits in sysfs follow the flags", limits).quick(),
    Test::new("flags.limits_reset", "the next attachment has none of the last one's limits", limits_reset),
    Test::new("flags.read_only", "a read-only export is read-only, and writable again afterwards", read_only),
    Test::new("flags.flush", "fsync sends a flush exactly when the server takes it", flush),
    Test::new("flags.fua", "a synchronous write carries FUA exactly when the server takes it", fua),
    Test::new("flags.requests", "offset, length, flags and a fresh cookie of reads and writes", requests)
        .quick(),
    Test::new("flags.trim", "BLKDISCARD is a trim of the same range", trim),
    Test::new(
        "flags.write_zeroes",
        "zeroing is write-zeroes, with NO_HOLE unless a hole may be punched",
        zeroes,
    )
    .quick(),
    Test::new(
        "flags.no_write_zeroes",
        "without the flag zeroing is writing, and discard is refused",
        no_zeroes,
    ),
];

const SIZE: u64 = 8 << 20;

fn server() -> Result<Server> {
    Ok(Server::new(Export::memory(SIZE)?))
}

/// Checks an attribute of the queue. One that this kernel does not have is a failure, too.
fn queue(checks: &mut Checks, device: &Device, attribute: &str, want: &str) {
    let got = device.sysfs(&format!("queue/{attribute}"));
    checks.equal(attribute, got.as_deref(), Some(want));
}

/// The longest range that 32 bits of bytes hold, in whole sectors.
const LONGEST: &str = "4294966784";

fn limits(_: &Context) -> Result<()> {
    let cases: [(u64, [&str; 5]); 8] = [
        (0, ["0", "0", "write through", "0", "0"]),
        (flag::SEND_FLUSH, ["0", "0", "write back", "0", "0"]),
        (flag::SEND_FLUSH | flag::SEND_FUA, ["0", "0", "write back", "1", "0"]),
        // FUA is of no use to the block layer where there is no cache to flush.
        (flag::SEND_FUA, ["0", "0", "write through", "0", "0"]),
        (flag::SEND_TRIM, [LONGEST, "0", "write through", "0", "0"]),
        (flag::SEND_WRITE_ZEROES, ["0", LONGEST, "write through", "0", "0"]),
        (flag::ROTATIONAL, ["0", "0", "write through", "0", "1"]),
        (0x7f & !flag::READ_ONLY, [LONGEST, LONGEST, "write back", "1", "1"]),
    ];
    let server = server()?;
    let mut checks = Checks::default();
    for (flags, want) in cases {
        let mut one = Checks::default();
        with_attached(&server, Setup::for_server(&server).flags(flags), |device| {
            let names = ["discard_max_bytes", "write_zeroes_max_bytes", "write_cache", "fua", "rotational"];
            for (name, want) in names.into_iter().zip(want) {
                queue(&mut one, device, name, want);
            }
            for (name, want) in [("max_hw_sectors_kb", "32768"), ("optimal_io_size", "131072")] {
                queue(&mut one, device, name, want);
            }
            Ok(())
        })?;
        if let Err(error) = one.done() {
            checks.that(&format!("flags {flags:#x}: {error:#}"), false);
        }
    }
    checks.done()
}

fn limits_reset(_: &Context) -> Result<()> {
    let server = server()?;
    let all =
        flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::ROTATIONAL;
    let setup = Setup::for_server(&server);
    with_attached(&server, setup.flags(all | flag::READ_ONLY).block_size(4096), |_| Ok(()))?;
    with_attached(&server, setup, |device| {
        let mut checks = Checks::default();
        for name in ["discard_max_bytes", "write_zeroes_max_bytes", "fua", "rotational"] {
            queue(&mut checks, device, name, "0");
        }
        queue(&mut checks, device, "write_cache", "write through");
        queue(&mut checks, device, "logical_block_size", "512");
        checks.equal("read-only", device.read_only()?, false);
        checks.done()
    })
}

fn read_only(_: &Context) -> Result<()> {
    let server = server()?;
    server.export().write(4096, &[0xee; 4096])?;
    with_attached(&server, Setup::for_server(&server).flags(flag::READ_ONLY), |device| {
        let mut checks = Checks::default();
        checks.equal("BLKROGET", device.read_only()?, true);
        checks.equal("ro in sysfs", device.sysfs("ro").as_deref(), Some("1"));
        let read = device.file().read_exact_at(&mut [0; 4096], 4096);
        checks.that("a read succeeds", read.is_ok());
        // The block layer refuses writes by itself, through an old open as through a new one.
        let refused = |written: std::io::Result<()>| written.map_err(|error| io_errno(&error));
        let write = device.file().write_all_at(&[1; 4096], 0);
        checks.equal("a buffered write", refused(write), Err(Errno::EPERM));
        let write = write_direct(&open_direct("/dev/nbd0")?, 0, &[1; 4096]);
        checks.equal("a direct write", refused(write), Err(Errno::EPERM));
        checks.that("a discard is refused", device.discard(0, 4096).is_err());
        checks.done()
    })?;
    ensure!(server.seen_of(Command::Write).is_empty(), "the server of a read-only device saw a write");
    with_attached(&server, Setup::for_server(&server), |device| {
        ensure!(!device.read_only()?, "still read-only when attached without the flag");
        write_direct(&open_direct("/dev/nbd0")?, 0, &[1; 4096])?;
        Ok(())
    })
}

fn flush(_: &Context) -> Result<()> {
    for (flags, wanted) in [(0, false), (flag::SEND_FLUSH, true)] {
        let server = server()?;
        with_attached(&server, Setup::for_server(&server).flags(flags), |_| {
            let direct = open_direct("/dev/nbd0")?;
            write_direct(&direct, 0, &[3; 4096])?;
            server.forget();
            direct.sync_all()?;
            let flushes = server.seen_of(Command::Flush);
            ensure!(flushes.len() == usize::from(wanted), "flags {flags:#x}: fsync sent {flushes:?}");
            for flush in flushes {
                let plain = flush.offset == 0 && flush.length == 0 && flush.flags == 0;
                ensure!(plain, "a flush has no offset, length or flags: {flush:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// One O_DIRECT write with RWF_DSYNC.
fn write_dsync(file: &std::fs::File, offset: u64, data: &[u8]) -> Result<()> {
    let buffer = Buffer::filled(data);
    let vector = libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: buffer.len() };
    let fd = file.as_raw_fd();
    // SAFETY: the vector describes the buffer, which outlives the call and is only read.
    let count = unsafe { libc::pwritev2(fd, &vector, 1, offset as i64, libc::RWF_DSYNC) };
    ensure!(errno_result(count as i32)? as usize == data.len(), "short write");
    Ok(())
}

fn fua(_: &Context) -> Result<()> {
    // (flags, FUA on the write, any flush after it)
    let cases = [
        (0, false, false),
        (flag::SEND_FLUSH, false, true),
        // The write's FUA does, but the block device's fsync flushes all the same.
        (flag::SEND_FLUSH | flag::SEND_FUA, true, true),
        (flag::SEND_FUA, false, false),
    ];
    let mut checks = Checks::default();
    for (flags, fua, flushes) in cases {
        let server = server()?;
        with_attached(&server, Setup::for_server(&server).flags(flags), |_| {
            let direct = open_direct("/dev/nbd0")?;
            server.forget();
            write_dsync(&direct, 65536, &[9; 4096])?;
            let writes = server.seen_of(Command::Write);
            let got: Vec<bool> = writes.iter().map(|write| write.flags & command_flag::FUA != 0).collect();
            checks.equal(&format!("flags {flags:#x}: FUA on the writes"), got, vec![fua]);
            let got = !server.seen_of(Command::Flush).is_empty();
            checks.equal(&format!("flags {flags:#x}: flushed"), got, flushes);
            Ok(())
        })?;
    }
    checks.done()
}

/// What of a request is the driver's choice of words left out: command, flags, offset, length.
fn shape(request: &Request) -> (Command, u16, u64, u32) {
    (request.command, request.flags, request.offset, request.length)
}

fn requests(_: &Context) -> Result<()> {
    let server = server()?;
    with_attached(&server, Setup::for_server(&server), |_| {
        let direct = open_direct("/dev/nbd0")?;
        server.forget();
        let mut wanted = Vec::new();
        for (offset, length) in [(0, 512), (512, 512), (4096, 4096), (1 << 20, 65536), (SIZE - 512, 512)] {
            write_direct(&direct, offset, &vec![0xa5; length])?;
            wanted.push((Command::Write, 0, offset, length as u32));
            read_direct(&direct, offset, length)?;
            wanted.push((Command::Read, 0, offset, length as u32));
        }
        let seen = server.seen();
        let shapes: Vec<_> = seen.iter().map(shape).collect();
        ensure!(shapes == wanted, "the server saw {shapes:?}, wanted {wanted:?}");
        let mut cookies: Vec<u64> = seen.iter().map(|request| request.cookie).collect();
        cookies.sort_unstable();
        cookies.dedup();
        ensure!(cookies.len() == seen.len(), "a cookie was used twice: {seen:?}");
        Ok(())
    })?;
    let last = server.seen().last().copied();
    let disconnect = last.is_some_and(|last| last.command == Command::Disconnect);
    ensure!(disconnect, "NBD_DISCONNECT must tell the server, which last saw {last:?}");
    Ok(())
}

/// Offsets, and the byte that the 4 KiB there are full of.
fn reads_as(table: &[(u64, u8)]) -> Result<()> {
    let direct = open_direct("/dev/nbd0")?;
    let mut checks = Checks::default();
    for (offset, want) in table {
        let data = read_direct(&direct, *offset, 4096)?;
        checks.that(&format!("data at {offset}"), data.iter().all(|byte| byte == want));
    }
    checks.done()
}

fn trim(_: &Context) -> Result<()> {
    let server = server()?;
    server.export().write(0, &vec![0x77; SIZE as usize])?;
    with_attached(&server, Setup::for_server(&server).flags(flag::SEND_TRIM), |device| {
        server.forget();
        device.discard(1 << 20, 3 << 20)?;
        device.discard(SIZE - 512, 512)?;
        let shapes: Vec<_> = server.seen().iter().map(shape).collect();
        let wanted = [(Command::Trim, 0, 1 << 20, 3 << 20), (Command::Trim, 0, SIZE - 512, 512)];
        ensure!(shapes == wanted, "the server saw {shapes:?}");
        reads_as(&[((1 << 20) - 4096, 0x77), (1 << 20, 0), ((4 << 20) - 4096, 0), (4 << 20, 0x77)])
    })
}

fn zeroes(_: &Context) -> Result<()> {
    let server = server()?;
    server.export().write(0, &vec![0x77; SIZE as usize])?;
    with_attached(&server, Setup::for_server(&server).flags(flag::SEND_WRITE_ZEROES), |device| {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        server.forget();
        device.zero_out(0, 65536)?;
        device.fallocate(libc::FALLOC_FL_ZERO_RANGE | keep, 1 << 20, 1 << 20)?;
        device.fallocate(libc::FALLOC_FL_PUNCH_HOLE | keep, 4 << 20, 2 << 20)?;
        let shapes: Vec<_> = server.seen().iter().map(shape).collect();
        let no_hole = command_flag::NO_HOLE;
        let wanted = [
            (Command::WriteZeroes, no_hole, 0, 65536),
            (Command::WriteZeroes, no_hole, 1 << 20, 1 << 20),
            (Command::WriteZeroes, 0, 4 << 20, 2 << 20),
        ];
        ensure!(shapes == wanted, "the server saw {shapes:?}");
        reads_as(&[(0, 0), (65536, 0x77), (2 << 20, 0x77), (5 << 20, 0), (6 << 20, 0x77)])
    })
}

fn no_zeroes(_: &Context) -> Result<()> {
    let server = server()?;
    server.export().write(0, &vec![0x77; SIZE as usize])?;
    with_attached(&server, Setup::for_server(&server), |device| {
        let mut checks = Checks::default();
        checks.equal("BLKDISCARD", device.discard(0, 4096), Err(Errno::EOPNOTSUPP));
        server.forget();
        device.zero_out(0, 65536)?;
        let seen = server.seen();
        checks.that(&format!("only writes: {seen:?}"), {
            !seen.is_empty() && seen.iter().all(|request| request.command == Command::Write)
        });
        let data = read_direct(&open_direct("/dev/nbd0")?, 0, 65536 + 4096)?;
        checks.that("zeroes", data[..65536].iter().all(|byte| *byte == 0));
        checks.that("the rest untouched", data[65536..].iter().all(|byte| *byte == 0x77));
        checks.done()
    })
}
