// SPDX-License-Identifier: GPL-2.0
//! Who uses a device: exclusively (a mounted filesystem, device-mapper, md, swap), or by just having it open.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::process::{FDTarget, MountInfo, Process};
use serde::Serialize;

use crate::process::comm;

/// A use that keeps the device from being attached to something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum User {
    Mount {
        node: String,
        filesystem: String,
        at: PathBuf,
        /// A process that sees the mount, if we do not.
        namespace_of: Option<i32>,
    },
    Swap {
        node: String,
    },
    /// Another block device on top of it.
    Holder {
        node: String,
        name: String,
    },
    Loop {
        node: String,
        name: String,
    },
}

impl User {
    /// A loop device opens what it is on like anybody else.
    pub fn is_exclusive(&self) -> bool {
        !matches!(self, User::Loop { .. })
    }

    /// The command that ends this use.
    pub fn release(&self) -> String {
        match self {
            User::Mount { at, namespace_of: None, .. } => format!("umount {}", at.display()),
            User::Mount { at, namespace_of: Some(pid), .. } => {
                format!("nsenter -m -t {pid} umount {}", at.display())
            }
            User::Swap { node } => format!("swapoff /dev/{node}"),
            User::Holder { name, .. } => match name.split_once(" (") {
                Some((_, name)) => format!("dmsetup remove {}", name.trim_end_matches(')')),
                None if name.starts_with("md") => format!("mdadm --stop /dev/{name}"),
                None => format!("whatever stops {name}"),
            },
            User::Loop { name, .. } => format!("losetup -d /dev/{name}"),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Mount { node, filesystem, at, namespace_of } => {
                write!(f, "{filesystem} of /dev/{node}, mounted at {}", at.display())?;
                match namespace_of {
                    Some(pid) => write!(f, " in the mount namespace of process {pid} ({})", comm(*pid)),
                    None => Ok(()),
                }
            }
            User::Swap { node } => write!(f, "swap on /dev/{node}"),
            User::Holder { node, name } => write!(f, "{name} on /dev/{node}"),
            User::Loop { node, name } => write!(f, "{name} on /dev/{node}"),
        }
    }
}

/// A process that has the device or a partition open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Opener {
    pub pid: i32,
    pub comm: String,
    pub node: String,
}

impl fmt::Display for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.comm)?;
        if self.node.contains('p') { write!(f, ", {}", self.node) } else { Ok(()) }
    }
}

/// The disk and its partitions.
pub struct Nodes {
    /// Names, by major and minor number as in mountinfo.
    by_number: BTreeMap<String, String>,
}

impl Nodes {
    pub fn of(index: u32) -> Nodes {
        let disk = format!("nbd{index}");
        let folder = Path::new("/sys/block").join(&disk);
        let mut names = vec![disk.clone()];
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.strip_prefix(&disk).is_some_and(|rest| rest.starts_with('p')) {
                names.push(name);
            }
        }
        let number = |name: &str| {
            let path = if name == disk { folder.join("dev") } else { folder.join(name).join("dev") };
            Some(fs::read_to_string(path).ok()?.trim().to_owned())
        };
        let by_number = names.into_iter().filter_map(|name| Some((number(&name)?, name))).collect();
        Nodes { by_number }
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.by_number.values()
    }

    /// The node that a path in /dev names.
    fn at_path(&self, path: &str) -> Option<&String> {
        let name = path.strip_prefix("/dev/")?;
        self.names().find(|node| *node == name)
    }

    fn of_mount(&self, mount: &MountInfo) -> Option<&String> {
        // btrfs has numbers of its own, and names the device.
        self.by_number.get(&mount.majmin).or_else(|| self.at_path(mount.mount_source.as_deref()?))
    }

    /// Those whose use keeps others out, and loop devices. Other mount namespaces than ours are seen by root alone.
    pub fn users(&self) -> Vec<User> {
        let mut users = self.mounts();
        users.extend(self.swaps(&fs::read_to_string("/proc/swaps").unwrap_or_default()));
        users.extend(self.holders());
        users.extend(self.loops());
        users
    }

    fn mounts(&self) -> Vec<User> {
        let mut seen = BTreeSet::new();
        let mut users = Vec::new();
        let mut look = |process: &Process, foreign: bool| {
            let Ok(namespace) = fs::read_link(format!("/proc/{}/ns/mnt", process.pid)) else { return };
            if !seen.insert(namespace) {
                return;
            }
            for mount in process.mountinfo().into_iter().flatten() {
                if let Some(node) = self.of_mount(&mount) {
                    users.push(User::Mount {
                        node: node.clone(),
                        filesystem: mount.fs_type,
                        at: mount.mount_point,
                        namespace_of: foreign.then_some(process.pid),
                    });
                }
            }
        };
        if let Ok(myself) = Process::myself() {
            look(&myself, false);
        }
        for process in procfs::process::all_processes().into_iter().flatten().flatten() {
            look(&process, true);
        }
        users
    }

    fn swaps(&self, table: &str) -> Vec<User> {
        let nodes = table.lines().skip(1).filter_map(|line| self.at_path(line.split_whitespace().next()?));
        nodes.map(|node| User::Swap { node: node.clone() }).collect()
    }

    fn holders(&self) -> Vec<User> {
        let mut users = Vec::new();
        for node in self.names() {
            let folder = Path::new("/sys/class/block").join(node).join("holders");
            for holder in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = holder.file_name().to_string_lossy().into_owned();
                let mapped = fs::read_to_string(format!("/sys/block/{name}/dm/name"));
                let name = mapped.map(|mapped| format!("{name} ({})", mapped.trim())).unwrap_or(name);
                users.push(User::Holder { node: node.clone(), name });
            }
        }
        users
    }

    fn loops(&self) -> Vec<User> {
        let mut users = Vec::new();
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
            if let Some(node) = self.at_path(backing.trim_end()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                users.push(User::Loop { node: node.clone(), name });
            }
        }
        users
    }

    /// The processes that have it open, as far as we may see: root sees all.
    pub fn openers(&self) -> Vec<Opener> {
        let mut openers = Vec::new();
        let ourselves = std::process::id() as i32;
        for process in procfs::process::all_processes().into_iter().flatten().flatten() {
            let pid = process.pid;
            if pid == ourselves {
                continue;
            }
            let mut nodes = BTreeSet::new();
            for descriptor in process.fd().into_iter().flatten().flatten() {
                // What is not in /dev is not looked at: that might wait for a server.
                let FDTarget::Path(path) = &descriptor.target else { continue };
                if path.starts_with("/dev") {
                    nodes.extend(self.opened(pid, descriptor.fd));
                }
            }
            openers.extend(nodes.into_iter().map(|node| Opener { pid, comm: comm(pid), node }));
        }
        openers
    }

    fn opened(&self, pid: i32, descriptor: i32) -> Option<String> {
        let metadata = fs::metadata(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
        let number = metadata.rdev();
        let name = format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let is_block = metadata.mode() & nix::libc::S_IFMT == nix::libc::S_IFBLK;
        self.by_number.get(&name).filter(|_| is_block).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Nodes {
        let pair = |number: &str, name: &str| (number.to_owned(), name.to_owned());
        Nodes { by_number: [pair("43:0", "nbd0"), pair("43:1", "nbd0p1")].into() }
    }

    fn mount(line: &str) -> MountInfo {
        MountInfo::from_line(line).unwrap()
    }

    #[test]
    fn mounts_are_found_by_number_or_name() {
        let ext4 = mount("36 35 43:1 / /mnt rw,relatime shared:1 - ext4 /dev/by-something rw");
        assert_eq!(nodes().of_mount(&ext4).unwrap(), "nbd0p1");
        let btrfs = mount("36 35 0:44 / /mnt rw,relatime - btrfs /dev/nbd0 rw");
        assert_eq!(nodes().of_mount(&btrfs).unwrap(), "nbd0");
        let other = mount("36 35 43:32 / /mnt rw,relatime - ext4 /dev/nbd1 rw");
        assert_eq!(nodes().of_mount(&other), None);
    }

    #[test]
    fn swaps_are_found() {
        let table = "Filename\tType\tSize\tUsed\tPriority\n/dev/nbd0p1 partition 1024 0 -2\n/dev/sda2 partition 1 0 -3\n";
        assert_eq!(nodes().swaps(table), [User::Swap { node: "nbd0p1".to_owned() }]);
    }

    #[test]
    fn each_use_is_ended_by_a_command() {
        let node = || "nbd0".to_owned();
        let at = PathBuf::from("/mnt");
        let filesystem = "ext4".to_owned();
        let here =
            User::Mount { node: node(), filesystem: filesystem.clone(), at: at.clone(), namespace_of: None };
        assert_eq!(here.to_string(), "ext4 of /dev/nbd0, mounted at /mnt");
        assert_eq!(here.release(), "umount /mnt");
        let there = User::Mount { node: node(), filesystem, at, namespace_of: Some(i32::MAX) };
        assert!(there.to_string().contains("namespace of process"));
        let mapped = User::Holder { node: node(), name: "dm-0 (root)".to_owned() };
        assert_eq!(mapped.to_string(), "dm-0 (root) on /dev/nbd0");
        assert_eq!(mapped.release(), "dmsetup remove root");
        assert!(!User::Loop { node: node(), name: "loop0".to_owned() }.is_exclusive());
    }
}
