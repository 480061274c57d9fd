// SPDX-License-Identifier: GPL-2.0
//! ublk's control device: making, starting, stopping and removing a device, the numbers of `uapi/linux/ublk_cmd.h`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow, ensure};
use io_uring::IoUring;
use io_uring::cqueue;
use io_uring::opcode::UringCmd80;
use io_uring::squeue::Entry128;
use io_uring::types::Fd;

use crate::bench::job::SIZE;

pub const DEVICE: &str = "/dev/ublk-control";

/// The one device that we make.
const ID: u32 = 0;

/// Requests that a queue may have at least.
const LEAST: u64 = 4;

/// `struct ublksrv_ctrl_cmd`.
#[repr(C)]
#[derive(Default)]
struct Command {
    id: u32,
    queue: u16,
    length: u16,
    address: u64,
    data: u64,
    path_length: u16,
    pad: u16,
    reserved: u32,
}

/// `struct ublksrv_ctrl_dev_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    queues: u16,
    depth: u16,
    state: u16,
    descriptor: u16,
    largest: u32,
    id: u32,
    pid: i32,
    pad: u32,
    flags: u64,
    of_server: u64,
    uid: u32,
    gid: u32,
    reserved: [u64; 2],
}

/// `struct ublk_params` as far as its basic ones.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    length: u32,
    kinds: u32,
    attributes: u32,
    logical_shift: u8,
    physical_shift: u8,
    optimal_shift: u8,
    least_shift: u8,
    most_sectors: u32,
    chunk_sectors: u32,
    sectors: u64,
    boundary: u64,
}

const BASIC: u32 = 1;
const BY_IOCTL_NUMBERS: u64 = 1 << 6;
const NO_QUEUE: u16 = u16::MAX;

/// `_IOWR('u', number, struct ublksrv_ctrl_cmd)`.
const fn command(number: u32) -> u32 {
    (3 << 30) | ((size_of::<Command>() as u32) << 16) | ((b'u' as u32) << 8) | number
}

const ADD: u32 = command(0x04);
const DELETE: u32 = command(0x05);
const START: u32 = command(0x06);
const STOP: u32 = command(0x07);
const PARAMETERS: u32 = command(0x08);

/// What the kernel has made of our wishes.
#[derive(Clone, Copy)]
pub struct Shape {
    pub queues: usize,
    /// Requests of each.
    pub depth: u16,
    /// Bytes of the largest request.
    pub largest: usize,
}

/// The control device, and a ring to talk to it.
pub struct Control {
    device: File,
    ring: IoUring<Entry128, cqueue::Entry>,
}

impl Control {
    pub fn open() -> Result<Control> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        let device = device.with_context(|| format!("open {DEVICE}"))?;
        Ok(Control { device, ring: IoUring::builder().build(4).context("a ring")? })
    }

    /// Makes a device with so many queues, or as many as there are processors.
    pub fn add(&mut self, queues: usize, depth: u64, block: u64) -> Result<Shape> {
        let largest = block.max(64 << 10) as u32;
        let depth = depth.max(LEAST) as u16;
        let flags = BY_IOCTL_NUMBERS;
        let mut info = Info { queues: queues as u16, depth, largest, id: ID, flags, ..Info::default() };
        self.with_buffer(ADD, &mut info).context("ADD_DEV")?;
        let mut parameters = Parameters {
            length: size_of::<Parameters>() as u32,
            kinds: BASIC,
            logical_shift: 9,
            physical_shift: 9,
            optimal_shift: 9,
            least_shift: 9,
            most_sectors: largest >> 9,
            sectors: SIZE >> 9,
            ..Parameters::default()
        };
        self.with_buffer(PARAMETERS, &mut parameters).context("SET_PARAMS")?;
        Ok(Shape { queues: info.queues.into(), depth: info.depth, largest: info.largest as usize })
    }

    /// Starts it. The process with this number has all its requests.
    pub fn start(&mut self, pid: i32) -> Result<()> {
        self.run(START, Command { data: pid as u64, ..Command::default() }).context("START_DEV")
    }

    /// Stops it: who serves is told so by all of its requests.
    pub fn stop(&mut self) -> Result<()> {
        self.run(STOP, Command::default()).context("STOP_DEV")
    }

    /// Removes it, when who served has gone.
    pub fn delete(&mut self) -> Result<()> {
        self.run(DELETE, Command::default()).context("DEL_DEV")
    }

    fn with_buffer<T>(&mut self, number: u32, buffer: &mut T) -> Result<()> {
        let (address, length) =
            (std::ptr::from_mut(buffer).expose_provenance() as u64, size_of::<T>() as u16);
        self.run(number, Command { address, length, ..Command::default() })
    }

    fn run(&mut self, number: u32, command: Command) -> Result<()> {
        let command = Command { id: ID, queue: NO_QUEUE, ..command };
        let mut bytes = [0; 80];
        // SAFETY: both are plain memory, of which as much is copied as the smaller one, the command, has.
        unsafe {
            let from = std::ptr::from_ref(&command).cast::<u8>();
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), size_of::<Command>());
        }
        let entry = UringCmd80::new(Fd(self.device.as_raw_fd()), number).cmd(bytes).build();
        // SAFETY: the entry is copied; what the command points to outlives the command, which is waited for.
        unsafe { self.ring.submission().push(&entry) }.map_err(|error| anyhow!("{error}"))?;
        self.ring.submit_and_wait(1)?;
        let answer = self.ring.completion().next().context("no answer")?.result();
        ensure!(answer >= 0, io::Error::from_raw_os_error(-answer));
        Ok(())
    }
}
