// SPDX-License-Identifier: GPL-2.0
//! What the server serves: a file, which may live in memory only.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZero;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap};

use crate::device::errno_result;

pub struct Export {
    file: File,
    size: u64,
}

impl Export {
    /// A sparse export of zeroes in memory.
    pub fn memory(size: u64) -> Result<Export> {
        let file = File::from(memfd_create("export", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(size)?;
        Ok(Export { file, size })
    }

    /// The same, all of it in memory that is never swapped out.
    pub fn locked(size: u64) -> Result<Export> {
        let export = Export::memory(size)?;
        let length = NonZero::new(usize::try_from(size)?).context("an empty export")?;
        let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, at a place that the kernel chooses. It stays as long as this process.
        let start = unsafe { mmap(None, length, rights, flags, &export.file, 0) }?;
        // SAFETY: that is what was mapped.
        unsafe { mlock(start, length.get()) }.context("mlock")?;
        Ok(export)
    }

    pub fn file(path: &Path) -> Result<Export> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        let size = file.metadata()?.len();
        Ok(Export { file, size })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; length];
        self.read_into(offset, &mut data)?;
        Ok(data)
    }

    pub fn read_into(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Makes the range read as zeroes, by a hole.
    pub fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let fd = self.file.as_raw_fd();
        // SAFETY: plain system call on a descriptor that we own.
        let result = unsafe { libc::fallocate(fd, mode, offset as i64, length as i64) };
        errno_result(result).map_err(io::Error::from).map(drop)
    }

    pub fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size)
    }
}
