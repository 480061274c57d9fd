// SPDX-License-Identifier: GPL-2.0
//! The export's memory: mapped once, present from the start, and handed to system calls by address, so that the
//! server neither allocates nor copies what it can send and receive in place.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Memory that several threads read and write at once, as a disk's clients may: who wants order makes it himself.
pub struct Memory {
    base: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: it is a mapping without a reference to it anywhere; all access is by raw address.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn new(length: usize) -> Result<Memory> {
        let size = NonZeroUsize::new(length).context("an export without a byte")?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // MAP_POPULATE: no page fault falls into a measurement.
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: a new anonymous mapping, at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(None, size, prot, flags) }.context("map the export's memory")?;
        let memory = Memory { base, length };
        // Else the limit's fork would make each page's next store a fault, and with it the jobs that come after it dearer.
        // SAFETY: it is our mapping, which no child of ours knows of.
        unsafe { madvise(base, length, MmapAdvise::MADV_DONTFORK) }.context("MADV_DONTFORK")?;
        Ok(memory)
    }

    /// A range for readv, writev and the like; None if it is not all inside.
    pub fn range(&self, offset: u64, length: usize) -> Option<libc::iovec> {
        let offset = usize::try_from(offset).ok()?;
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length);
        // SAFETY: offset is inside of the mapping, or at its end.
        let start = unsafe { self.base.as_ptr().byte_add(offset.min(self.length)) };
        inside.then_some(libc::iovec { iov_base: start, iov_len: length })
    }

    /// Stores bytes that were received elsewhere, at the start of a range of this memory.
    pub fn store(&self, range: &libc::iovec, bytes: &[u8]) {
        let length = bytes.len().min(range.iov_len);
        // SAFETY: `range` made the range, so that it is mapped; `bytes` are not in this memory, to which nobody has a
        // reference. Another thread that stores at the same place at the same time is a client's who races with itself.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), range.iov_base.cast(), length) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it is ours, and the last one who knew its address is gone.
        let _ = unsafe { munmap(self.base, self.length) };
    }
}
