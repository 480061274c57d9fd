// SPDX-License-Identifier: GPL-2.0
//! What goes into an initramfs, and the `newc` cpio archive made of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc;

/// One entry: what it is and where its content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir,
    /// A copy of a file, executable when that one is.
    Copy(PathBuf),
    /// A symbolic link to this target.
    Link(String),
    /// A file with this content and mode.
    Text(String, u32),
    /// A character device (major, minor).
    Char(u32, u32),
}

/// Paths in the guest, without the leading slash, and what is there. Parents come before children by the order
/// of the map.
#[derive(Default)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Adds an entry and its parent directories; the first one at a path stays.
    pub fn add(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        let mut parent = path;
        while let Some((dir, _)) = parent.rsplit_once('/') {
            self.0.entry(dir.to_owned()).or_insert(Node::Dir);
            parent = dir;
        }
        self.0.entry(path.to_owned()).or_insert(node);
    }

    /// True when there is an entry at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path.trim_start_matches('/'))
    }

    /// A text that differs whenever the archive would: paths, and size, time and inode of what is copied.
    pub fn manifest(&self) -> Result<String> {
        let mut text = String::new();
        for (path, node) in &self.0 {
            let stamp = match node {
                Node::Copy(source) => {
                    let meta = stat(source)?;
                    let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
                    format!(" {} {} {times:?}", meta.ino(), meta.size())
                }
                _ => String::new(),
            };
            text += &format!("{path} {node:?}{stamp}\n");
        }
        Ok(text)
    }

    /// Writes the archive.
    pub fn write(&self, to: &Path) -> Result<()> {
        let mut out = BufWriter::new(File::create(to).with_context(|| format!("create {}", to.display()))?);
        for (number, (path, node)) in self.0.iter().enumerate() {
            let entry = newc::Builder::new(path).ino(number as u32 + 1).nlink(1);
            write_node(entry, node, &mut out).with_context(|| format!("archive {path}"))?;
        }
        newc::trailer(&mut out)?;
        out.flush().with_context(|| format!("write {}", to.display()))
    }
}

fn stat(path: &Path) -> Result<fs::Metadata> {
    fs::metadata(path).with_context(|| format!("look at {}", path.display()))
}

fn write_node(entry: newc::Builder, node: &Node, out: &mut impl Write) -> Result<()> {
    const DIR: u32 = 0o040_000;
    const FILE: u32 = 0o100_000;
    const LINK: u32 = 0o120_000;
    const CHAR: u32 = 0o020_000;
    let mut put = |entry: newc::Builder, mode: u32, content: &mut dyn io::Read, size: u64| -> Result<()> {
        let mut writer = entry.mode(mode).write(&mut *out, u32::try_from(size).context("over 4 GiB")?);
        io::copy(content, &mut writer)?;
        writer.finish()?;
        Ok(())
    };
    match node {
        Node::Dir => put(entry, DIR | 0o755, &mut io::empty(), 0),
        Node::Link(target) => put(entry, LINK | 0o777, &mut target.as_bytes(), target.len() as u64),
        Node::Text(text, mode) => put(entry, FILE | mode, &mut text.as_bytes(), text.len() as u64),
        Node::Char(major, minor) => {
            put(entry.rdev_major(*major).rdev_minor(*minor), CHAR | 0o600, &mut io::empty(), 0)
        }
        Node::Copy(source) => {
            let meta = stat(source)?;
            let mode = if meta.mode() & 0o111 == 0 { 0o644 } else { 0o755 };
            put(entry, FILE | mode, &mut File::open(source)?, meta.size())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_holds_what_was_added_with_parents_first() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::write(&source, "content").unwrap();
        let mut tree = Tree::default();
        tree.add("/usr/bin/program", Node::Copy(source.clone()));
        tree.add("bin", Node::Link("usr/bin".into()));
        tree.add("dev/console", Node::Char(5, 1));
        let before = tree.manifest().unwrap();

        let archive = dir.path().join("archive");
        tree.write(&archive).unwrap();
        let mut input = File::open(&archive).unwrap();
        let mut names = Vec::new();
        loop {
            let mut reader = newc::Reader::new(input).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push(reader.entry().name().to_owned());
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content).unwrap();
            match names.last().unwrap().as_str() {
                "usr/bin/program" => assert_eq!(content, b"content"),
                "bin" => assert_eq!(content, b"usr/bin"),
                "dev/console" => assert_eq!(reader.entry().rdev_minor(), 1),
                _ => assert!(content.is_empty()),
            }
            input = reader.finish().unwrap();
        }
        assert_eq!(names, ["bin", "dev", "dev/console", "usr", "usr/bin", "usr/bin/program"]);

        fs::write(&source, "other content").unwrap();
        assert_ne!(tree.manifest().unwrap(), before);
    }
}
