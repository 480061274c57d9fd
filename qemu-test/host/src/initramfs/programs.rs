// SPDX-License-Identifier: GPL-2.0
//! The guest's programs, with the libraries that they need.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lddtree::DependencyAnalyzer;

use super::archive::{Node, Tree};

/// What the tests and the demo cannot do without.
const NEEDED: &[&str] = &[
    "blkid",
    "blkdiscard",
    "blockdev",
    "e2fsck",
    "fio",
    "kmod",
    "lsmod",
    "mke2fs",
    "mkfs.ext4",
    "mkfs.xfs",
    "modprobe",
    "nbd-client",
    "nbd-server",
    "qemu-img",
    "qemu-io",
    "qemu-nbd",
    "rmmod",
    "sfdisk",
    "xfs_repair",
];

/// What is taken when the root has it; busybox stands in for some.
const WELCOME: &[&str] = &[
    "depmod",
    "dmsetup",
    "fsck.ext4",
    "fsfreeze",
    "insmod",
    "ip",
    "losetup",
    "lsblk",
    "modinfo",
    "mount",
    "nbdkit",
    "partx",
    "perf",
    "ps",
    "qemu-storage-daemon",
    "strace",
    "tune2fs",
    "udevadm",
    "umount",
    "wipefs",
    "xfs_io",
];

/// Opened by name at run time, so that no program says that it needs them.
const LIBRARIES: &[&str] = &["libgcc_s.so.1", "nbdkit/plugins/nbdkit-memory-plugin.so"];

/// Folders of libraries that are found by the RUNPATH of another library (librados'), which lddtree does not follow.
const LIBRARY_FOLDERS: &[&str] = &["usr/lib/x86_64-linux-gnu/ceph"];

/// Configuration that the programs read.
const FILES: &[&str] = &["/etc/mke2fs.conf", "/etc/ld.so.conf"];

const FOLDERS: &[&str] = &["usr/bin", "usr/sbin", "bin", "sbin"];

/// Adds programs, libraries, configuration, and busybox for the rest.
pub fn add(tree: &mut Tree, sysroot: &Path) -> Result<()> {
    let mut seen = BTreeSet::new();
    let missing: Vec<&str> = NEEDED.iter().copied().filter(|name| find(sysroot, name).is_none()).collect();
    ensure!(
        missing.is_empty(),
        "{} has no {}: add the package to toolchain/packages",
        sysroot.display(),
        missing.join(", no ")
    );
    for name in NEEDED.iter().chain(WELCOME) {
        if let Some(path) = find(sysroot, name) {
            add_file(tree, sysroot, &path)?;
            add_libraries(tree, sysroot, &path, &mut seen)?;
        }
    }
    for library in LIBRARIES {
        let folder = sysroot.join("usr/lib/x86_64-linux-gnu");
        if folder.join(library).exists() {
            add_file(tree, sysroot, &folder.join(library))?;
            add_libraries(tree, sysroot, &folder.join(library), &mut seen)?;
        }
    }
    for file in FILES {
        let source = sysroot.join(file.trim_start_matches('/'));
        if source.exists() {
            tree.add(file, Node::Copy(source));
        }
    }
    add_busybox(tree, sysroot)
}

fn find(sysroot: &Path, name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| sysroot.join(folder).join(name)).find(|path| path.exists())
}

/// The path that a file has in the guest: that in the root, with `/bin` and the like resolved to `/usr/bin`.
fn guest_path(sysroot: &Path, path: &Path) -> Result<String> {
    let folder = path.parent().context("a file has a directory")?.canonicalize()?;
    let folder = folder.strip_prefix(sysroot.canonicalize()?).context("a link leads out of the root")?;
    let name = path.file_name().context("a file has a name")?;
    Ok(folder.join(name).to_string_lossy().into_owned())
}

/// Adds a file; of a link, the file that it leads to as well, so that one copy serves all its names.
fn add_file(tree: &mut Tree, sysroot: &Path, path: &Path) -> Result<()> {
    let inside = guest_path(sysroot, path)?;
    let real = path.canonicalize().with_context(|| format!("resolve {}", path.display()))?;
    if path.is_symlink() {
        let target = guest_path(sysroot, &real)?;
        if target != inside {
            tree.add(&inside, Node::Link(format!("/{target}")));
        }
        tree.add(&target, Node::Copy(real));
    } else {
        tree.add(&inside, Node::Copy(real));
    }
    Ok(())
}

fn add_libraries(
    tree: &mut Tree,
    sysroot: &Path,
    program: &Path,
    seen: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    let real = program.canonicalize()?;
    if !seen.insert(real.clone()) {
        return Ok(());
    }
    let found = DependencyAnalyzer::new(sysroot.to_owned())
        .library_paths(LIBRARY_FOLDERS.iter().map(|folder| sysroot.join(folder)).collect())
        .analyze(&real)
        .with_context(|| format!("find the libraries of {}", real.display()))?;
    if let Some(interpreter) = &found.interpreter {
        let path = sysroot.join(interpreter.trim_start_matches('/'));
        tree.add(interpreter, Node::Copy(path.canonicalize().unwrap_or(path)));
    }
    for library in found.libraries.values() {
        match &library.realpath {
            Some(_) => add_file(tree, sysroot, &library.path)?,
            None => bail!("{} needs {}, which is not in the root", real.display(), library.name),
        }
    }
    Ok(())
}

/// busybox, under each of its names that nothing else has taken.
fn add_busybox(tree: &mut Tree, sysroot: &Path) -> Result<()> {
    let path = find(sysroot, "busybox").with_context(|| {
        format!("{} has no busybox: add busybox-static to toolchain/packages", sysroot.display())
    })?;
    let output = Command::new(&path).arg("--list").output().context("start busybox")?;
    ensure!(output.status.success(), "busybox --list: {}", output.status);
    tree.add("usr/bin/busybox", Node::Copy(path));
    for name in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        if !FOLDERS.iter().any(|folder| tree.has(&format!("{folder}/{name}"))) {
            tree.add(&format!("usr/bin/{name}"), Node::Link("busybox".to_owned()));
        }
    }
    Ok(())
}
