// SPDX-License-Identifier: GPL-2.0
//! Memory whose second half is not there until a test says so: who reads it, in the kernel or not, waits.

use std::ffi::c_void;
use std::fs::File;
use std::io::Read as _;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::ptr::NonNull;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::process::PATIENCE;
use crate::tests::skip;

// `linux/userfaultfd.h`.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;
const API: u64 = 0xaa;
const REGISTER_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const MESSAGE: usize = 32;

/// Whoever still waits when this goes gets what is there: zeroes.
pub struct Late {
    start: NonNull<c_void>,
    length: usize,
    faults: File,
}

// SAFETY: the memory is nobody's but this value's, and is accessed by system calls alone.
unsafe impl Send for Late {}
// SAFETY: as above; nothing is changed but by the kernel.
unsafe impl Sync for Late {}

fn order<const N: usize>(faults: &File, command: libc::Ioctl, mut words: [u64; N]) -> Result<(), Errno> {
    // SAFETY: the commands used here read and write as many words as they are given.
    Errno::result(unsafe { libc::ioctl(faults.as_raw_fd(), command, words.as_mut_ptr()) }).map(drop)
}

impl Late {
    /// Twice as much as `first`, which is its first half. Whole pages.
    pub fn new(first: &[u8]) -> Result<Late> {
        let length = 2 * first.len();
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        if fd < 0 {
            return skip(format!("this kernel has no userfaultfd: {}", Errno::last()));
        }
        // SAFETY: it was just made, and is nobody's yet.
        let faults = unsafe { File::from_raw_fd(fd as i32) };
        let size = NonZero::new(length).context("no memory at all")?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new memory, at a place that the kernel chooses.
        let start = unsafe { mmap_anonymous(None, size, rights, MapFlags::MAP_PRIVATE) }.context("mmap")?;
        let late = Late { start, length, faults };
        order(&late.faults, UFFDIO_API, [API, 0, 0]).context("UFFDIO_API")?;
        let whole = [late.address(), length as u64, REGISTER_MISSING, 0];
        order(&late.faults, UFFDIO_REGISTER, whole).context("UFFDIO_REGISTER")?;
        late.fill(0, first).context("the first half")?;
        Ok(late)
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    fn fill(&self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        let (to, from) = (self.address() + offset as u64, data.as_ptr() as u64);
        order(&self.faults, UFFDIO_COPY, [to, from, data.len() as u64, 0, 0])
    }

    /// `pwrite` of all of it. Waits in the middle.
    pub fn write_to(&self, file: &File, offset: u64) -> std::io::Result<usize> {
        // SAFETY: the kernel reads memory that is there as long as this is.
        let done = unsafe { libc::pwrite(file.as_raw_fd(), self.start.as_ptr(), self.length, offset as i64) };
        usize::try_from(done).map_err(|_| std::io::Error::last_os_error())
    }

    /// `read` into the second half. Waits until that is there.
    pub fn read_late(&self, file: &File) -> std::io::Result<usize> {
        let half = self.length / 2;
        // SAFETY: the kernel writes to memory that is there as long as this is.
        let done = unsafe { libc::read(file.as_raw_fd(), self.start.as_ptr().byte_add(half), half) };
        usize::try_from(done).map_err(|_| std::io::Error::last_os_error())
    }

    /// Until somebody waits for the second half.
    pub fn wait_wanted(&self) -> Result<()> {
        let mut fds = [PollFd::new(self.faults.as_fd(), PollFlags::POLLIN)];
        let bound = PollTimeout::try_from(*PATIENCE)?;
        ensure!(poll(&mut fds, bound)? > 0, "nobody has come to the second half");
        let mut message = [0; MESSAGE];
        let count = (&self.faults).read(&mut message)?;
        ensure!(count == MESSAGE && message[0] == EVENT_PAGEFAULT, "userfaultfd says {message:?}");
        Ok(())
    }

    /// The second half is there now, and is this.
    pub fn arrive(&self, second: &[u8]) -> Result<()> {
        ensure!(
            2 * second.len() == self.length,
            "a half has {} bytes, not {}",
            self.length / 2,
            second.len()
        );
        self.fill(self.length / 2, second).context("the second half")
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
