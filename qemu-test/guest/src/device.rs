// SPDX-License-Identifier: GPL-2.0
//! A `/dev/nbdN` as a test sees it: ioctls with their raw errno, size, sysfs.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use crate::process::wait_for;

/// The ioctls of `uapi/linux/nbd.h`.
pub mod req {
    pub const SET_SOCK: u32 = 0xab00;
    pub const SET_BLKSIZE: u32 = 0xab01;
    pub const SET_SIZE: u32 = 0xab02;
    pub const DO_IT: u32 = 0xab03;
    pub const CLEAR_SOCK: u32 = 0xab04;
    pub const CLEAR_QUE: u32 = 0xab05;
    pub const PRINT_DEBUG: u32 = 0xab06;
    pub const SET_SIZE_BLOCKS: u32 = 0xab07;
    pub const DISCONNECT: u32 = 0xab08;
    pub const SET_TIMEOUT: u32 = 0xab09;
    pub const SET_FLAGS: u32 = 0xab0a;
    pub const ALL: [(&str, u32); 11] = [
        ("SET_SOCK", SET_SOCK),
        ("SET_BLKSIZE", SET_BLKSIZE),
        ("SET_SIZE", SET_SIZE),
        ("DO_IT", DO_IT),
        ("CLEAR_SOCK", CLEAR_SOCK),
        ("CLEAR_QUE", CLEAR_QUE),
        ("PRINT_DEBUG", PRINT_DEBUG),
        ("SET_SIZE_BLOCKS", SET_SIZE_BLOCKS),
        ("DISCONNECT", DISCONNECT),
        ("SET_TIMEOUT", SET_TIMEOUT),
        ("SET_FLAGS", SET_FLAGS),
    ];
}

/// The transmission flags of the NBD protocol, as NBD_SET_FLAGS takes them.
pub mod flag {
    pub const HAS_FLAGS: u64 = 1 << 0;
    pub const READ_ONLY: u64 = 1 << 1;
    pub const SEND_FLUSH: u64 = 1 << 2;
    pub const SEND_FUA: u64 = 1 << 3;
    pub const ROTATIONAL: u64 = 1 << 4;
    pub const SEND_TRIM: u64 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u64 = 1 << 6;
    pub const CAN_MULTI_CONN: u64 = 1 << 8;
}

const BLKROSET: libc::Ioctl = 0x125d;
const BLKROGET: libc::Ioctl = 0x125e;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKBSZSET: libc::Ioctl = 0x4008_1271;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKZEROOUT: libc::Ioctl = 0x127f;
const BLKFLSBUF: libc::Ioctl = 0x1261;

pub fn errno_result(value: libc::c_int) -> Result<i32, Errno> {
    Errno::result(value)
}

/// `ioctl(fd, cmd, arg)` with the errno as the kernel gave it.
pub fn raw_ioctl(fd: RawFd, cmd: u32, arg: u64) -> Result<i32, Errno> {
    // SAFETY: every command used with this function takes its argument by value or none at all.
    errno_result(unsafe { libc::ioctl(fd, libc::Ioctl::from(cmd), arg) })
}

pub struct Device {
    file: File,
    index: u32,
}

impl Device {
    /// Opens `/dev/nbdN` for reading and writing.
    pub fn open(index: u32) -> Result<Device> {
        let path = node(index);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Device { file, index })
    }

    /// Opens it also while an attachment of another process is giving it another disk: it is not there for a moment.
    pub fn open_in_turn(index: u32) -> Result<Device> {
        let mut opened = Device::open(index);
        let gone = |opened: &Result<Device>| {
            let error = opened.as_ref().err().and_then(|error| error.downcast_ref::<std::io::Error>());
            matches!(error.and_then(std::io::Error::raw_os_error), Some(libc::ENXIO | libc::ENOENT))
        };
        let _ = wait_for("the device", || {
            if gone(&opened) {
                opened = Device::open(index);
            }
            !gone(&opened)
        });
        opened
    }

    /// A second handle on the same open file: to the driver it is the same opener.
    pub fn same_open(&self) -> Result<Device> {
        let file = self.file.try_clone()?;
        Ok(Device { file, index: self.index })
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn index(&self) -> u32 {
        self.index
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn ioctl(&self, cmd: u32, arg: u64) -> Result<i32, Errno> {
        raw_ioctl(self.fd(), cmd, arg)
    }

    pub fn size(&self) -> Result<u64> {
        device_size(&self.file)
    }

    /// `BLKROSET`, which makes it read-only until it is taken back.
    pub fn set_read_only(&self) -> Result<(), Errno> {
        let yes: libc::c_int = 1;
        // SAFETY: the command reads one int.
        errno_result(unsafe { libc::ioctl(self.fd(), BLKROSET, &yes) }).map(drop)
    }

    pub fn read_only(&self) -> Result<bool> {
        Ok(get_int(&self.file, BLKROGET).context("BLKROGET")? != 0)
    }

    pub fn block_size(&self) -> Result<u32> {
        Ok(get_int(&self.file, BLKSSZGET).context("BLKSSZGET")? as u32)
    }

    pub fn discard(&self, offset: u64, length: u64) -> Result<(), Errno> {
        range_ioctl(&self.file, BLKDISCARD, offset, length)
    }

    pub fn zero_out(&self, offset: u64, length: u64) -> Result<(), Errno> {
        range_ioctl(&self.file, BLKZEROOUT, offset, length)
    }

    /// Writes dirty pages back and drops the page cache, so that the next buffered read asks the server.
    pub fn flush_buffers(&self) -> Result<(), Errno> {
        // SAFETY: BLKFLSBUF takes no argument.
        errno_result(unsafe { libc::ioctl(self.fd(), BLKFLSBUF, 0) }).map(drop)
    }

    pub fn fallocate(&self, mode: libc::c_int, offset: u64, length: u64) -> Result<(), Errno> {
        // SAFETY: plain system call on a descriptor that we own.
        let result = unsafe { libc::fallocate(self.fd(), mode, offset as i64, length as i64) };
        errno_result(result).map(drop)
    }

    /// One attribute of `/sys/block/nbdN`, trimmed; None when it does not exist.
    pub fn sysfs(&self, attribute: &str) -> Option<String> {
        sysfs(self.index, attribute)
    }
}

pub fn node(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

pub fn sysfs_path(index: u32, attribute: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{index}")).join(attribute)
}

pub fn sysfs(index: u32, attribute: &str) -> Option<String> {
    let text = fs::read_to_string(sysfs_path(index, attribute)).ok()?;
    Some(text.trim().to_owned())
}

/// Capacity in bytes as sysfs shows it, without opening the device.
pub fn capacity(index: u32) -> u64 {
    let sectors = sysfs(index, "size").and_then(|text| text.parse::<u64>().ok());
    sectors.unwrap_or(0) * 512
}

/// The disk sequence number: it moves when the disk's content is another one's.
pub fn diskseq(index: u32) -> Result<u64> {
    let text = sysfs(index, "diskseq").with_context(|| format!("nbd{index} has no diskseq"))?;
    Ok(text.parse()?)
}

/// True when the device is attached: nbd drivers show `pid` exactly then.
pub fn attached(index: u32) -> bool {
    sysfs_path(index, "pid").exists()
}

pub fn wait_attached(index: u32) -> Result<()> {
    wait_for("the device to be attached", || attached(index) && capacity(index) != 0)
}

/// Waits until nothing is attached: `pid` is gone and the capacity is 0.
pub fn wait_idle(index: u32) -> Result<()> {
    wait_for("the device to be idle (no pid, capacity 0)", || !attached(index) && capacity(index) == 0)
}

pub fn device_size(file: &File) -> Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64.
    errno_result(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut size) })
        .context("BLKGETSIZE64")?;
    Ok(size)
}

/// Opens a block device with O_DIRECT.
pub fn open_direct(path: impl Into<PathBuf>) -> Result<File> {
    let path = path.into();
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .with_context(|| format!("open {} with O_DIRECT", path.display()))
}

/// `BLKBSZSET`: the block size of the page cache.
pub fn set_soft_block_size(file: &File, bytes: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the command reads one int.
    errno_result(unsafe { libc::ioctl(file.as_raw_fd(), BLKBSZSET, &bytes) }).map(drop)
}

fn get_int(file: &File, cmd: libc::Ioctl) -> Result<libc::c_int, Errno> {
    let mut value: libc::c_int = 0;
    // SAFETY: the commands used here write one int.
    errno_result(unsafe { libc::ioctl(file.as_raw_fd(), cmd, &mut value) })?;
    Ok(value)
}

fn range_ioctl(file: &File, cmd: libc::Ioctl, offset: u64, length: u64) -> Result<(), Errno> {
    let range = [offset, length];
    // SAFETY: BLKDISCARD and BLKZEROOUT read two u64.
    errno_result(unsafe { libc::ioctl(file.as_raw_fd(), cmd, range.as_ptr()) }).map(drop)
}

/// Memory aligned as O_DIRECT wants it.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    const ALIGN: usize = 4096;

    pub fn new(length: usize) -> Buffer {
        let memory = vec![0; length + Self::ALIGN];
        let start = memory.as_ptr().align_offset(Self::ALIGN);
        Buffer { memory, start, length }
    }

    pub fn filled(data: &[u8]) -> Buffer {
        let mut buffer = Buffer::new(data.len());
        buffer.copy_from_slice(data);
        buffer
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// O_DIRECT read of `length` bytes; a short read is an error.
pub fn read_direct(file: &File, offset: u64, length: usize) -> std::io::Result<Buffer> {
    let mut buffer = Buffer::new(length);
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}

pub fn write_direct(file: &File, offset: u64, data: &[u8]) -> std::io::Result<()> {
    file.write_all_at(&Buffer::filled(data), offset)
}

/// Writes, reads back without the page cache, compares.
pub fn round_trip(file: &File, offset: u64, data: &[u8]) -> Result<()> {
    write_direct(file, offset, data).with_context(|| format!("write at {offset}"))?;
    let back = read_direct(file, offset, data.len()).with_context(|| format!("read at {offset}"))?;
    ensure!(back[..] == *data, "data read at {offset} differ from what was written");
    Ok(())
}

/// Turns the errno of an I/O error into something comparable.
pub fn io_errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
