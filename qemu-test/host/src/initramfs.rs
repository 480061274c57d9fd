// SPDX-License-Identifier: GPL-2.0
//! The guest's root: an initramfs in two parts. The base (programs, libraries, kernel modules) is kept and made
//! again only when one of its sources changes; the overlay (our module, our programs, the job) is small and
//! made for each boot. The kernel unpacks one after the other.

mod archive;
mod modules;
mod programs;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use archive::{Node, Tree};

/// Kernel modules that a test may want; the drivers under test are not among them.
const MODULES: [&str; 14] = [
    "brd",
    "btrfs",
    "dm-crypt",
    "dm-delay",
    "dm-flakey",
    "dm-mod",
    "dm-snapshot",
    "dm-zero",
    "ext4",
    "loop",
    "null_blk",
    "raid1",
    "ublk_drv",
    "xfs",
];

/// Where everything comes from.
pub struct Sources<'a> {
    /// Root of the programs.
    pub sysroot: &'a Path,
    /// The stock kernel's modules, `.../lib/modules/RELEASE`.
    pub modules: &'a Path,
    /// The kernel's release.
    pub release: &'a str,
    /// `rnbd.ko`, if it is needed.
    pub module: Option<&'a Path>,
    /// `nbd.ko`, uncompressed.
    pub c_module: &'a Path,
    /// `rnbd-test`.
    pub test_program: &'a Path,
    /// `rnbdctl`, if it is needed.
    pub control_program: Option<&'a Path>,
}

/// Makes the initramfs for one boot, at `to`. `store` keeps the base from one boot to the next.
pub fn build(sources: &Sources, job: &str, store: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(store).with_context(|| format!("create {}", store.display()))?;
    let base = base(sources, store).context("make the base of the initramfs")?;
    let overlay = to.with_extension("overlay");
    overlay_tree(sources, job).write(&overlay)?;
    // A hard link or a copy in the kernel (reflink) where the file system can.
    fs::copy(&base, to).with_context(|| format!("copy {} to {}", base.display(), to.display()))?;
    let mut whole = File::options().append(true).open(to)?;
    io::copy(&mut File::open(&overlay)?, &mut whole).context("append the overlay")?;
    fs::remove_file(&overlay)?;
    Ok(())
}

fn base(sources: &Sources, store: &Path) -> Result<PathBuf> {
    let archive = store.join("base.cpio");
    let manifest_file = store.join("base.manifest");
    let mut tree = Tree::default();
    skeleton(&mut tree);
    programs::add(&mut tree, sources.sysroot)?;
    let list = sources.modules.join("modules.dep");
    let stamp = fs::metadata(&list).and_then(|meta| meta.modified()).ok();
    let wanted = format!("{}{} {stamp:?} {MODULES:?}\n", tree.manifest()?, sources.modules.display());
    if archive.exists() && fs::read_to_string(&manifest_file).is_ok_and(|text| text == wanted) {
        return Ok(archive);
    }
    // Names of our own, so that two runs at once do not meet; the manifest comes last.
    let mine = store.join(format!("base.{}", std::process::id()));
    let _ = fs::remove_dir_all(&mine);
    let staged = modules::stage(sources.modules, sources.release, &MODULES, &mine)?;
    add_folder(&mut tree, &staged, &format!("usr/lib/modules/{}", sources.release))?;
    let new = mine.join("base.cpio");
    tree.write(&new)?;
    let _ = fs::remove_file(&manifest_file);
    fs::rename(&new, &archive)?;
    fs::write(mine.join("manifest"), &wanted)?;
    fs::rename(mine.join("manifest"), &manifest_file)?;
    fs::remove_dir_all(&mine)?;
    Ok(archive)
}

/// Folders, and the little configuration that programs expect.
fn skeleton(tree: &mut Tree) {
    for (link, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
    {
        tree.add(link, Node::Link(target.to_owned()));
    }
    for folder in [
        "dev",
        "etc",
        "mnt",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "usr/lib64",
        "usr/sbin",
        "var/lib",
        "var/log",
        "modules",
    ] {
        tree.add(folder, Node::Dir);
    }
    tree.add("var/run", Node::Link("/run".to_owned()));
    tree.add("var/lock", Node::Link("/run/lock".to_owned()));
    tree.add("dev/console", Node::Char(5, 1));
    tree.add("dev/null", Node::Char(1, 3));
    let text = |text: &str| Node::Text(text.to_owned(), 0o644);
    tree.add(
        "etc/passwd",
        text("root:x:0:0:root:/root:/bin/sh\nnbd:x:100:100::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n"),
    );
    tree.add("etc/group", text("root:x:0:\ndisk:x:6:\nnbd:x:100:\nnogroup:x:65534:\n"));
    tree.add("etc/hosts", text("127.0.0.1 localhost\n::1 localhost\n"));
    // No name service but these files: without this, libc asks a DNS server that is not there.
    tree.add("etc/nsswitch.conf", text("passwd: files\ngroup: files\nhosts: files\nservices: files\n"));
    tree.add("etc/mtab", Node::Link("/proc/self/mounts".to_owned()));
}

fn add_folder(tree: &mut Tree, from: &Path, inside: &str) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let name = format!("{inside}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            add_folder(tree, &entry.path(), &name)?;
        } else {
            tree.add(&name, Node::Copy(entry.path()));
        }
    }
    Ok(())
}

fn overlay_tree(sources: &Sources, job: &str) -> Tree {
    let mut tree = Tree::default();
    tree.add("init", Node::Text(include_str!("initramfs/init.sh").to_owned(), 0o755));
    tree.add("job", Node::Text(job.to_owned(), 0o644));
    tree.add("modules/nbd.ko", Node::Copy(sources.c_module.to_owned()));
    if let Some(module) = sources.module {
        tree.add("modules/rnbd.ko", Node::Copy(module.to_owned()));
    }
    tree.add("usr/bin/rnbd-test", Node::Copy(sources.test_program.to_owned()));
    if let Some(program) = sources.control_program {
        tree.add("usr/bin/rnbdctl", Node::Copy(program.to_owned()));
    }
    tree
}
