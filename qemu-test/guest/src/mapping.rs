// SPDX-License-Identifier: GPL-2.0
//! A file in memory, looked at so that a page that cannot be read or written is an error and not a SIGBUS: it is a system
//! call that copies.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

pub struct Mapping {
    start: NonNull<c_void>,
    length: usize,
    /// What is copied goes through it.
    other: File,
}

// SAFETY: the mapping is nobody's but this value's, and is accessed by system calls alone.
unsafe impl Send for Mapping {}

impl Mapping {
    /// The first `length` bytes of a file, shared with all who have it.
    pub fn new(file: impl AsFd, length: usize) -> Result<Mapping> {
        let size = NonZero::new(length).context("an empty mapping")?;
        let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe { mmap(None, size, rights, flags, file, 0) }.context("mmap")?;
        let other = File::from(memfd_create("copy", MFdFlags::MFD_CLOEXEC)?);
        Ok(Mapping { start, length, other })
    }

    fn at(&self, offset: usize, length: usize) -> *mut c_void {
        assert!(offset + length <= self.length, "{offset}+{length} is outside of the mapping");
        // SAFETY: within the mapping, as was just seen.
        unsafe { self.start.as_ptr().byte_add(offset) }
    }

    pub fn read(&self, offset: usize, length: usize) -> io::Result<Vec<u8>> {
        // SAFETY: the kernel reads `length` bytes there, or says that it cannot.
        let done = unsafe { libc::pwrite(self.other.as_raw_fd(), self.at(offset, length), length, 0) };
        whole(done, length)?;
        let mut data = vec![0; length];
        std::os::unix::fs::FileExt::read_exact_at(&self.other, &mut data, 0)?;
        Ok(data)
    }

    pub fn write(&self, offset: usize, data: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.other, data, 0)?;
        let (there, length) = (self.at(offset, data.len()), data.len());
        // SAFETY: the kernel writes `length` bytes there, or says that it cannot. No reference to them exists.
        let done = unsafe { libc::pread(self.other.as_raw_fd(), there, length, 0) };
        whole(done, length)
    }

    /// Until what was written is there for good.
    pub fn sync(&self) -> Result<(), Errno> {
        // SAFETY: the mapping itself.
        unsafe { msync(self.start, self.length, MsFlags::MS_SYNC) }
    }
}

fn whole(done: isize, length: usize) -> io::Result<()> {
    match done {
        -1 => Err(io::Error::last_os_error()),
        done if done as usize == length => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
