// SPDX-License-Identifier: GPL-2.0
//! Buffered reads and writes of one image are right, whatever block size the one before had, and whoever has it open.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::image::{Image, content, drop_caches};
use crate::attach::Setup;
use crate::device::{Device, capacity, open_direct, read_direct, sysfs};
use crate::netlink::{attr, attr_u64};
use crate::process::{hold_open, run, wait_for};
use crate::server::{Action, Export, Server};
use crate::tests::netlink::attached::Attached;
use crate::tests::teardown::EBUSY_FOR_EVER;
use crate::tests::{Checks, Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.block_size",
        "each block size after each other one, under an opener of the last image",
        held,
    )
    .limit(120)
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("disks.block_size_first", "each block size by the first open, which is its client's", first)
        .limit(120)
        .known_on_nbd("the client's own open has the blocks of before"),
    Test::new("disks.block_size_odd", "sizes that are no whole pages, with small blocks", odd).limit(120),
    Test::new(
        "disks.block_size_netlink",
        "the same by netlink, under an opener of the last image",
        by_netlink,
    )
    .limit(120)
    .known_on_nbd("EBUSY for as long as anybody has it open"),
    Test::new("disks.block_size_gpt", "a partition table is read in large blocks too", gpt)
        .limit(120)
        .known_on_nbd(EBUSY_FOR_EVER),
];

const SIZES: [u64; 5] = [512, 1024, 4096, 16384, 65536];

fn any(name: u64, size: u64) -> Result<Image> {
    Image::sized(name, size, |_| Action::Serve)
}

/// Buffered reads and writes by new opens, at the begin, in the middle, at the end.
fn works(image: &Image) -> Result<()> {
    let size = image.server.export().size();
    image.reads("/dev/nbd0").context("all of it, buffered")?;
    let file = OpenOptions::new().read(true).write(true).open("/dev/nbd0")?;
    let mut data = vec![0; 65536];
    file.read_exact_at(&mut data, 0).context("the first 64 KiB, buffered")?;
    ensure!(data == content(image.name, 0, 65536), "the first 64 KiB are others");
    // Small ones too: what is around them stays.
    let tail = size - 512;
    for (offset, length) in [(0, 65536), (1 << 20, 4096), ((1 << 20) + 8192, 512), (tail, 512)] {
        let data = content(image.name + 0x100, offset, length);
        let what = || format!("{length} bytes at {offset}");
        file.write_all_at(&data, offset).with_context(what)?;
        file.sync_all().context("fsync").with_context(what)?;
        let there = image.server.export().read(offset, length)?;
        ensure!(there == data, "{} are not at the server", what());
        drop_caches()?;
        let mut back = vec![0; length];
        file.read_exact_at(&mut back, offset).with_context(what)?;
        ensure!(back == data, "{} do not read back", what());
        file.write_all_at(&content(image.name, offset, length), offset).with_context(what)?;
        file.sync_all().context("fsync").with_context(what)?;
    }
    image.reads("/dev/nbd0").context("all of it at last")?;
    let whole = size as usize / 512 * 512;
    let other = image.server.export().read(0, whole)? != content(image.name, 0, whole);
    ensure!(!other, "a write has changed what is around it");
    Ok(())
}

fn attached(image: &Image, block_size: u64) -> Result<()> {
    let mut client = image.setup().block_size(block_size).attach_in_child(0, &image.server)?;
    let shown = sysfs(0, "queue/logical_block_size");
    ensure!(shown == Some(block_size.to_string()), "the block size shows as {shown:?}");
    works(image)?;
    client.kill()?;
    image.server.wait_closed()
}

/// An image of each block size, under somebody who has opened the one before.
fn held(_: &Context) -> Result<()> {
    let mut checks = Checks::default();
    // Every size after every other one; 2 MiB and a sector, or whole blocks.
    let orders = SIZES.iter().flat_map(|before| SIZES.map(|now| (*before, now)));
    for (name, (before, now)) in orders.filter(|(before, now)| before != now).enumerate() {
        let odd = if before <= 512 { 512 } else { 0 };
        let a = any(2 * name as u64, (2 << 20) + odd)?;
        // By netlink the holder is the first who opens it, so that the device has the blocks that suit the first image.
        let device = Attached::new(&a.server, 1, &[attr_u64(attr::BLOCK_SIZE_BYTES, before)])?;
        let holder = hold_open("/dev/nbd0")?;
        let _ = Device::open(0)?.file().read_at(&mut [0; 4096], 0);
        device.disconnect()?;
        a.server.wait_closed()?;
        let b = any(2 * name as u64 + 1, 2 << 20)?;
        checks.also(attached(&b, now).with_context(|| format!("{now} after {before}, held")));
        drop(holder);
    }
    checks.done()
}

/// The first thing that a device is attached to, by its client's own open, which it had before.
fn first(context: &Context) -> Result<()> {
    let mut checks = Checks::default();
    for (number, size) in SIZES.into_iter().enumerate() {
        crate::tests::loadable(context)?;
        // The device is new.
        wait_for("the driver to be unloaded", || context.driver.remove().is_ok())?;
        context.driver.load(&context.modules, "nbds_max=2")?;
        let image = any(number as u64, 2 << 20)?;
        checks.also(attached(&image, size).with_context(|| format!("block size {size}")));
    }
    checks.done()
}

fn odd(_: &Context) -> Result<()> {
    let mut checks = Checks::default();
    let mut name = 0;
    for (block_size, size) in [(512, 512), (512, 3584), (1024, 1024), (1024, 5 << 10)] {
        for is_held in [false, true] {
            let holder = if is_held { Some(hold_open("/dev/nbd0")?) } else { None };
            name += 1;
            let image = any(name, (2 << 20) + size)?;
            let what = || format!("{size} bytes more, blocks of {block_size}, held: {is_held}");
            checks.also(attached(&image, block_size).with_context(what));
            drop(holder);
        }
    }
    checks.done()
}

fn by_netlink(_: &Context) -> Result<()> {
    let mut checks = Checks::default();
    for (name, size) in SIZES.into_iter().enumerate() {
        let holder = hold_open("/dev/nbd0")?;
        let image = any(name as u64, 2 << 20)?;
        let blocks = [attr_u64(attr::BLOCK_SIZE_BYTES, size)];
        let device = Attached::new(&image.server, 1, &blocks)?;
        ensure!(capacity(0) == 2 << 20, "the capacity is {}", capacity(0));
        checks.also(works(&image).with_context(|| format!("block size {size}")));
        device.disconnect()?;
        image.server.wait_closed()?;
        drop(holder);
    }
    checks.done()
}

/// A disk with 4096 or more bytes in a sector has its table in the second of them; busybox and the kernel count in
/// those.
fn gpt(context: &Context) -> Result<()> {
    if !crate::process::have("sfdisk") {
        return skip("there is no sfdisk");
    }
    let mut checks = Checks::default();
    for block_size in [4096, 65536] {
        let path = context.scratch_file("image");
        std::fs::File::create(&path)?.set_len(62 << 20)?;
        let file = || -> Result<Server> { Ok(Server::new(Export::file(Path::new(&path))?)) };
        let before = any(0xf, (2 << 20) + 512)?;
        let mut client = before.attach()?;
        let holder = hold_open("/dev/nbd0")?;
        client.kill()?;
        before.server.wait_closed()?;
        // sfdisk learns the size of a sector from the device.
        let server = file()?;
        let mut client = Setup::for_server(&server).block_size(block_size).attach_in_child(0, &server)?;
        let table = context.scratch_file("table");
        std::fs::write(&table, "label: gpt\nsize=4MiB\nsize=8MiB\n")?;
        let made = run("sh", &["-c", &format!("sfdisk --quiet --no-tell-kernel /dev/nbd0 <{table}")]);
        client.kill()?;
        server.wait_closed()?;
        if let Err(error) = made {
            checks.also(Err(error.context(format!("sfdisk, blocks of {block_size}"))));
            continue;
        }
        let server = file()?;
        let mut client = Setup::for_server(&server).block_size(block_size).attach_in_child(0, &server)?;
        drop(Device::open(0)?);
        let found = wait_for("the partitions", || Path::new("/dev/nbd0p2").exists());
        let found = found.and_then(|()| {
            let size = sysfs(0, "nbd0p2/size");
            ensure!(size == Some((16 << 10).to_string()), "the second partition has {size:?} sectors");
            let data = read_direct(&open_direct("/dev/nbd0p2")?, 0, 65536)?;
            ensure!(data.iter().all(|byte| *byte == 0), "it is not empty");
            Ok(())
        });
        checks.also(found.with_context(|| format!("blocks of {block_size}")));
        client.kill()?;
        server.wait_closed()?;
        drop(holder);
    }
    checks.done()
}
