// SPDX-License-Identifier: GPL-2.0
//! Who has opened one attachment, and reads and writes by that open when the next one is there.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;

use anyhow::{Context as _, Result, ensure};

use super::image::{Image, SIZE, dies, drop_caches};
use crate::device::{Device, open_direct, read_direct, write_direct};
use crate::mapping::Mapping;
use crate::process::{PATIENCE, describe_task, wait_for};
use crate::server::{Action, Command};
use crate::tests::teardown::EBUSY_FOR_EVER;
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("disks.reads_by_old_open", "who has opened one image never reads the next one", reads)
        .quick()
        .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("disks.writes_by_old_open", "who has opened one image never writes to the next one", writes)
        .quick()
        .known_on_nbd(EBUSY_FOR_EVER),
    Test::new(
        "disks.mmap",
        "who has mapped one image sees nothing of the next one, and does not change it",
        mapped,
    )
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new(
        "disks.readahead",
        "what was to be read ahead of one image is not read of the next one",
        readahead,
    )
    .known_on_nbd(EBUSY_FOR_EVER),
];

fn buffered(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut data = vec![0; length];
    file.read_exact_at(&mut data, offset).map(|()| data)
}

fn direct(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    read_direct(file, offset, length).map(|data| data.to_vec())
}

fn reads(_: &Context) -> Result<()> {
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let (plain, unbuffered) = (Device::open(0)?, open_direct("/dev/nbd0")?);
    let mapping = Mapping::new(plain.file(), SIZE as usize)?;
    let own = super::image::content(a.name, 0, 65536);
    ensure!(buffered(plain.file(), 0, 65536)? == own, "the first image does not read as itself");
    ensure!(direct(&unbuffered, 0, 65536)? == own, "nor with O_DIRECT");
    ensure!(mapping.read(0, 65536)? == own, "nor in memory");
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach()?;
    let mut checks = Checks::default();
    for when in ["at first", "without caches"] {
        for offset in [0, 1 << 20] {
            let what = |how: &str| format!("a {how} at {offset}, {when},");
            b.not_in(&what("read"), buffered(plain.file(), offset, 65536), &mut checks);
            b.not_in(&what("direct read"), direct(&unbuffered, offset, 65536), &mut checks);
            b.not_in(&what("look into memory"), mapping.read(offset as usize, 65536), &mut checks);
        }
        drop_caches()?;
    }
    let late = Mapping::new(plain.file(), SIZE as usize);
    if let Ok(late) = late {
        b.not_in("a mapping made late", late.read(2 << 20, 65536), &mut checks);
    }
    let size = plain.size();
    println!("to the old open the device has {size:?} bytes");
    let flushed = plain.flush_buffers();
    println!("BLKFLSBUF gave {flushed:?}");
    b.not_in("a read after BLKFLSBUF", buffered(plain.file(), 0, 65536), &mut checks);
    b.ends(&mut client, checks)
}

fn writes(_: &Context) -> Result<()> {
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let (plain, unbuffered) = (Device::open(0)?, open_direct("/dev/nbd0")?);
    // Some of it in the cache, and some dirty.
    buffered(plain.file(), 0, 1 << 20)?;
    plain.file().write_all_at(&[0xd1; 65536], 4096)?;
    ensure!(a.server.seen_of(Command::Write).is_empty(), "the pages were written back at once");
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach()?;
    let mut checks = Checks::default();
    println!("fsync of what the first server did not get: {:?}", plain.file().sync_all());
    for offset in [0, 8 << 20] {
        let written = write_direct(&unbuffered, offset, &[0xd2; 65536]);
        println!("a direct write at {offset}: {written:?}");
        checks.that("a direct write by an old open succeeded", written.is_err());
        let written = plain.file().write_all_at(&[0xd3; 65536], offset);
        let synced = plain.file().sync_all();
        println!("a write at {offset}: {written:?}, then fsync: {synced:?}");
        checks.that("a write and fsync by an old open succeeded", written.is_err() || synced.is_err());
    }
    let (discarded, zeroed) = (plain.discard(0, 1 << 20), plain.zero_out(0, 1 << 20));
    println!("BLKDISCARD gave {discarded:?}, BLKZEROOUT {zeroed:?}");
    checks.that("BLKZEROOUT by an old open succeeded", zeroed.is_err());
    drop((plain, unbuffered));
    b.ends(&mut client, checks)
}

fn mapped(_: &Context) -> Result<()> {
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let plain = Device::open(0)?;
    let mapping = Mapping::new(plain.file(), SIZE as usize)?;
    mapping.read(0, 65536)?;
    mapping.write(4096, &[0xe1; 8192])?;
    mapping.sync().context("msync to the first image")?;
    ensure!(a.server.export().read(4096, 8192)? == [0xe1; 8192], "the first image was not written");
    mapping.write(16384, &[0xe2; 8192])?;
    // The mapping is all that is left of it.
    drop(plain);
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach()?;
    let mut checks = Checks::default();
    for offset in [0, 4096, 16384, 1 << 20] {
        b.not_in(&format!("a look into memory at {offset}"), mapping.read(offset, 4096), &mut checks);
        let written = mapping.write(offset, &[0xe3; 4096]);
        println!("a write into memory at {offset} gave {written:?}, msync {:?}", mapping.sync());
    }
    drop(mapping);
    b.ends(&mut client, checks)
}

fn readahead(_: &Context) -> Result<()> {
    const SILENT: u64 = 4 << 20;
    let a = Image::behaving(0xa, |request| {
        let silent = request.command == Command::Read && request.offset >= SILENT;
        if silent { Action::Ignore } else { Action::Serve }
    })?;
    let mut client = a.attach()?;
    let plain = Device::open(0)?;
    let fd = plain.fd();
    let theirs = plain.same_open()?;
    let (sender, advised) = channel();
    // It may wait for a free request.
    std::thread::spawn(move || {
        // SAFETY: plain system call on a descriptor that the thread has.
        let done = unsafe {
            libc::posix_fadvise(theirs.file().as_raw_fd(), SILENT as i64, 4 << 20, libc::POSIX_FADV_WILLNEED)
        };
        drop(theirs);
        let _ = sender.send(done);
    });
    let asked = || a.server.seen_of(Command::Read).iter().any(|request| request.offset >= SILENT);
    wait_for("the server to be asked for what is read ahead", asked)?;
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach()?;
    let told = || describe_task(std::process::id() as i32);
    let done = advised.recv_timeout(*PATIENCE).with_context(|| format!("posix_fadvise hangs\n{}", told()))?;
    println!("posix_fadvise gave {done}");
    let mut checks = Checks::default();
    b.not_in("what was read ahead", buffered(plain.file(), SILENT, 4 << 20), &mut checks);
    // SAFETY: plain system call on a descriptor that we own.
    let done = unsafe { libc::readahead(fd, 12 << 20, 2 << 20) };
    println!("readahead by the old open gave {done}");
    b.not_in("what was read ahead late", buffered(plain.file(), 12 << 20, 2 << 20), &mut checks);
    b.ends(&mut client, checks)
}
