// SPDX-License-Identifier: GPL-2.0
//! Partitions of one attachment, when the next one comes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};

use super::image::{Image, drop_caches};
use crate::attach::Setup;
use crate::device::{Device, read_direct, sysfs, write_direct};
use crate::process::{Child, hold_open, wait_for};
use crate::server::Server;
use crate::tests::size::partitioned;
use crate::tests::teardown::EBUSY_FOR_EVER;
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[Test::new(
    "disks.partition_holder",
    "of partitions that somebody holds, nothing reaches the next image",
    holder,
)
.known_on_nbd(EBUSY_FOR_EVER)];

/// An image with two partitions, attached, and its client.
pub fn attached_partitions(context: &Context) -> Result<(Server, Child)> {
    let server = partitioned(context, "dos")?;
    let client = Setup::for_server(&server).attach_in_child(0, &server)?;
    // The table is read at the first open of a running device.
    drop(Device::open(0)?);
    for path in [P1, P2] {
        wait_for(path, || Path::new(path).exists())?;
    }
    Ok((server, client))
}

pub const P1: &str = "/dev/nbd0p1";
pub const P2: &str = "/dev/nbd0p2";

fn open(path: &str) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn holder(context: &Context) -> Result<()> {
    let (a, mut client) = attached_partitions(context)?;
    let holder = hold_open(P1)?;
    let (early, direct) = (open(P2)?, crate::device::open_direct(P2)?);
    early.read_exact_at(&mut [0; 4096], 0)?;
    client.kill()?;
    a.wait_closed()?;
    let b = Image::new(0xb)?;
    let mut client = b.attach()?;
    let mut checks = Checks::default();
    // The next table is read, which has no partition.
    println!("an open of the device gave {:?}", Device::open(0).map(drop));
    for (path, name) in [(P1, "nbd0p1"), (P2, "nbd0p2")] {
        let size = sysfs(0, &format!("{name}/size"));
        checks.that(&format!("{name} is still there, of {size:?} sectors"), size.is_none());
        checks.that(&format!("{path} is still there"), !Path::new(path).exists());
        match open(path) {
            Ok(late) => {
                let mut data = vec![0; 4096];
                let read = late.read_exact_at(&mut data, 0).map(|()| data);
                b.not_in(&format!("a read of {path}, opened late,"), read, &mut checks);
                let written = late.write_all_at(&[0xa1; 4096], 0).and_then(|()| late.sync_all());
                println!("a write to {path}, opened late: {written:?}");
            }
            Err(error) => println!("an open of {path} gave {error}"),
        }
    }
    drop_caches()?;
    let mut data = vec![0; 4096];
    let read = early.read_exact_at(&mut data, 8192).map(|()| data);
    b.not_in("a read by an early open of a partition", read, &mut checks);
    let read = read_direct(&direct, 8192, 4096).map(|data| data.to_vec());
    b.not_in("a direct read by an early open of a partition", read, &mut checks);
    println!("a direct write by an early open: {:?}", write_direct(&direct, 8192, &[0xa3; 4096]));
    let written = early.write_all_at(&[0xa2; 4096], 0).and_then(|()| early.sync_all());
    println!("a write by an early open: {written:?}");
    checks.that("a write by an early open succeeded", written.is_err());
    drop((early, direct, holder));
    b.ends(&mut client, checks)?;
    ensure!(!Path::new(P1).exists(), "a partition of the first image outlives the second");
    Ok(())
}
