// SPDX-License-Identifier: GPL-2.0
//! No memory left but what is to be had by writing to the device: a filesystem's pages, or anybody's (swap).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::starved::{LEFT, MIB, Served, memory};
use crate::mounted::{Mounted, mkfs_ext4};
use crate::process::have;
use crate::server::pattern;
use crate::swap::Swap;
use crate::tests::{Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new("load.dirty", "a filesystem's dirty pages, and no other memory left", dirty).limit(300),
    Test::new("load.swap", "swap on the device, and no other memory left", swap).limit(300),
];

/// What a filesystem's user writes: twice of what there is.
const FILE: usize = 2 * LEFT;
/// What is on the device then, and as much again for the filesystem.
const DISK: usize = 256 * MIB;

/// What a user of memory works on. Whatever lies in the initramfs can be swapped out too, and makes room for him.
const LOAD: usize = 4 * LEFT;
const SWAP: usize = 512 * MIB;

fn dirty(context: &Context) -> Result<()> {
    if !have("mkfs.ext4") {
        return skip("there is no mkfs.ext4 here");
    }
    // Half of what there is may be dirty. With all of it the kernel has nothing to free until a write ends, and may
    // run out of tries before a slow machine's does: no driver can help that.
    let ratios = [("dirty_ratio", "50"), ("dirty_background_ratio", "25")];
    let path = |name: &str| format!("/proc/sys/vm/{name}");
    let before = ratios.map(|(name, _)| fs::read_to_string(path(name)).unwrap_or_default());
    ratios.iter().try_for_each(|(name, value)| fs::write(path(name), value))?;
    let served = Served::new(DISK)?;
    mkfs_ext4("/dev/nbd0")?;
    let mounted = Mounted::new(context, "/dev/nbd0".as_ref(), "ext4")?;
    let file = mounted.file("data");
    let done = served.starve(|| {
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&file)?;
        for offset in (0..FILE as u64).step_by(MIB) {
            file.write_all_at(&pattern::data(offset, MIB, 2), offset)?;
        }
        file.sync_all()?;
        let mut data = vec![0; MIB];
        for offset in (0..FILE as u64).step_by(MIB) {
            file.read_exact_at(&mut data, offset)?;
            let versions = pattern::versions(offset, &data).map_err(|what| anyhow!("at {offset}: {what}"))?;
            ensure!(versions.iter().all(|version| *version == 2), "at {offset} is what was not written");
        }
        Ok(())
    });
    let unmounted = mounted.unmount();
    for ((name, _), value) in ratios.iter().zip(before) {
        fs::write(path(name), value)?;
    }
    done?;
    unmounted?;
    served.end()
}

/// Counters of all the kernel's memory management.
fn vmstat(names: [&str; 2]) -> Result<[u64; 2]> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let mut counts = [0; 2];
    for (count, name) in counts.iter_mut().zip(names) {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        *count = value.with_context(|| format!("no {name} in vmstat"))?.parse()?;
    }
    Ok(counts)
}

fn swap(_: &Context) -> Result<()> {
    const PAGE: usize = 4096;
    const TASKS: usize = 2;
    if !["mkswap", "swapon", "swapoff"].into_iter().all(have) || !Path::new("/proc/swaps").exists() {
        return skip("there is no swap here");
    }
    let served = Served::new(SWAP)?;
    let swap = Swap::on()?;
    let swapped = || vmstat(["pswpout", "pswpin"]);
    let before = swapped()?;
    served.starve(|| {
        // Each page is full of a word that tells which one it is, and which time it was written.
        let word = |part: usize, page: usize, version: u64| ((((part << 32) | page) as u64) << 8) | version;
        let work = |part: usize, words: &mut [u64]| -> Result<()> {
            for version in 1..=3 {
                for (page, words) in words.chunks_exact_mut(PAGE / size_of::<u64>()).enumerate() {
                    if version > 1 {
                        let want = word(part, page, version - 1);
                        let other = words.iter().find(|met| **met != want);
                        ensure!(other.is_none(), "page {page} came back with {other:x?} in it, not {want:x}");
                    }
                    words.fill(word(part, page, version));
                }
            }
            Ok(())
        };
        let words = memory(LOAD / size_of::<u64>())?;
        std::thread::scope(|scope| {
            let parts = words.chunks_mut(LOAD / size_of::<u64>() / TASKS).enumerate();
            let tasks: Vec<_> = parts.map(|(part, words)| scope.spawn(move || work(part, words))).collect();
            tasks.into_iter().try_for_each(|task| task.join().map_err(|_| anyhow!("a task panicked"))?)
        })
    })?;
    let after = swapped()?;
    let [out, back] = [after[0] - before[0], after[1] - before[1]];
    println!("{out} pages went out, {back} came back");
    let least = ((LOAD - 3 * LEFT) / PAGE) as u64;
    ensure!(out >= least && back >= least, "that is less than what had no place, {least} pages");
    swap.off()?;
    served.end()
}
