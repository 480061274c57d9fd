// SPDX-License-Identifier: GPL-2.0
//! The calls, and how each is made: by a process of its own, which can hang for all that the test cares.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;

use super::scene::{Hands, SIZE};
use crate::device::{io_errno, raw_ioctl, read_direct, req};
use crate::netlink::{Client, attr, attr_flag, attr_u64};
use crate::process::{Child, describe_task, fork_child, patient, pipe, wait_for_within};
use crate::tests::netlink::attached::{connect_sockets, fds};

/// What can be asked of a device, or of the machine that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    SetSock,
    SetBlksize,
    SetSize,
    SetSizeBlocks,
    SetTimeout,
    SetFlags,
    DoIt,
    ClearQue,
    PrintDebug,
    IoctlDisconnect,
    ClearSock,
    Connect,
    ConnectOther,
    ConnectAnew,
    Reconfigure,
    ReconfigureBlockSize,
    ReconfigureSockets,
    Handover,
    Status,
    Disconnect,
    Open,
    OpenExclusive,
    Close,
    LastClose,
    Read,
    Fsync,
    FlushBuffers,
    RereadPartitions,
    SysfsRead,
    QueueRead,
    QueueWrite,
    LimitsWrite,
    DebugfsRead,
    Rmmod,
    CpuOffline,
    Suspend,
}

/// What the kernel said.
pub type Answer = Result<(), Errno>;

const NODE: &str = "/dev/nbd0";
const SYSFS: &str = "/sys/block/nbd0";
const DEBUGFS: &str = "/sys/kernel/debug/nbd/nbd0";
/// The last one of two.
const CPU: &str = "/sys/devices/system/cpu/cpu1/online";
/// Has the kernel freeze all tasks, and thaw them: what a suspend begins and ends with.
const FREEZER: &str = "/dev/snapshot";
const SNAPSHOT_FREEZE: u32 = 0x3301;
const SNAPSHOT_UNFREEZE: u32 = 0x3302;

const BLKRRPART: u32 = 0x125f;
const BLKFLSBUF: u32 = 0x1261;

impl Call {
    pub const ALL: [Call; 36] = [
        Call::SetSock,
        Call::SetBlksize,
        Call::SetSize,
        Call::SetSizeBlocks,
        Call::SetTimeout,
        Call::SetFlags,
        Call::DoIt,
        Call::ClearQue,
        Call::PrintDebug,
        Call::IoctlDisconnect,
        Call::ClearSock,
        Call::Connect,
        Call::ConnectOther,
        Call::ConnectAnew,
        Call::Reconfigure,
        Call::ReconfigureBlockSize,
        Call::ReconfigureSockets,
        Call::Handover,
        Call::Status,
        Call::Disconnect,
        Call::Open,
        Call::OpenExclusive,
        Call::Close,
        Call::LastClose,
        Call::Read,
        Call::Fsync,
        Call::FlushBuffers,
        Call::RereadPartitions,
        Call::SysfsRead,
        Call::QueueRead,
        Call::QueueWrite,
        Call::LimitsWrite,
        Call::DebugfsRead,
        Call::Rmmod,
        Call::CpuOffline,
        Call::Suspend,
    ];

    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Call::SetSock => "NBD_SET_SOCK",
            Call::SetBlksize => "NBD_SET_BLKSIZE",
            Call::SetSize => "NBD_SET_SIZE",
            Call::SetSizeBlocks => "NBD_SET_SIZE_BLOCKS",
            Call::SetTimeout => "NBD_SET_TIMEOUT",
            Call::SetFlags => "NBD_SET_FLAGS",
            Call::DoIt => "NBD_DO_IT",
            Call::ClearQue => "NBD_CLEAR_QUE",
            Call::PrintDebug => "NBD_PRINT_DEBUG",
            Call::IoctlDisconnect => "NBD_DISCONNECT",
            Call::ClearSock => "NBD_CLEAR_SOCK",
            Call::Connect => "CONNECT of this device",
            Call::ConnectOther => "CONNECT of another, and its DISCONNECT",
            Call::ConnectAnew => "DISCONNECT, and CONNECT to another server",
            Call::Reconfigure => "RECONFIGURE: size, time-out",
            Call::ReconfigureBlockSize => "RECONFIGURE: block size",
            Call::ReconfigureSockets => "RECONFIGURE: sockets",
            Call::Handover => "RECONFIGURE: handover",
            Call::Status => "STATUS",
            Call::Disconnect => "DISCONNECT",
            Call::Open => "`open`",
            Call::OpenExclusive => "`open` with O_EXCL",
            Call::Close => "`close`, while others have it open",
            Call::LastClose => "`close`, the last, with data not written",
            Call::Read => "`read` with O_DIRECT",
            Call::Fsync => "`write`, `fsync`",
            Call::FlushBuffers => "BLKFLSBUF",
            Call::RereadPartitions => "BLKRRPART",
            Call::SysfsRead => "sysfs: read `pid`, `backend`, `size`, `nbd/*`, …",
            Call::QueueRead => "sysfs: read `queue/max_sectors_kb`",
            Call::QueueWrite => "sysfs: write `queue/nr_requests`",
            Call::LimitsWrite => "sysfs: write `queue/max_sectors_kb`",
            Call::DebugfsRead => "debugfs: read all of `nbd/nbd0`",
            Call::Rmmod => "`rmmod`",
            Call::CpuOffline => "a processor off, and on",
            Call::Suspend => "suspend: all tasks frozen, and thawed",
        }
    }

    /// Whether it is made of a device that a client has attached by ioctl: these are refused on others.
    pub fn is_ioctl(self) -> bool {
        use Call::*;
        matches!(
            self,
            SetSock
                | SetBlksize
                | SetSize
                | SetSizeBlocks
                | SetTimeout
                | SetFlags
                | DoIt
                | ClearQue
                | PrintDebug
                | IoctlDisconnect
                | ClearSock
        )
    }

    /// Why it cannot be made in this kernel.
    pub fn impossible(self) -> Option<&'static str> {
        match self {
            Call::CpuOffline if !Path::new(CPU).exists() => Some("there is no second processor"),
            Call::Suspend if !Path::new(FREEZER).exists() => {
                Some("this kernel does not freeze tasks on demand")
            }
            Call::DebugfsRead if !Path::new(DEBUGFS).exists() => Some("there is no debugfs"),
            _ => None,
        }
    }

    /// What comes before it.
    fn prepare(self, hands: &mut Hands) -> Result<()> {
        match self {
            Call::Fsync => hands.device()?.file().write_all_at(&[0xee; 4096], 1 << 20)?,
            Call::LastClose => {
                let file = OpenOptions::new().read(true).write(true).open(NODE)?;
                file.write_all_at(&[0xdd; 1 << 20], 2 << 20)?;
                hands.spare = Some(file);
            }
            _ => {}
        }
        Ok(())
    }

    fn make(self, hands: &mut Hands) -> Result<Answer> {
        let ioctl = |hands: &Hands, cmd, arg| Ok(hands.device()?.ioctl(cmd, arg).map(drop));
        let reconfigure = |sockets: &[RawFd], options: &[_]| -> Result<Answer> {
            let answer = Client::open()?.reconfigure(0, sockets, options)?;
            Ok(answer.map(drop).map_err(|refusal| refusal.errno))
        };
        match self {
            Call::SetSock => ioctl(hands, req::SET_SOCK, hands.socket()? as u64),
            Call::SetBlksize => ioctl(hands, req::SET_BLKSIZE, 2048),
            Call::SetSize => ioctl(hands, req::SET_SIZE, SIZE),
            Call::SetSizeBlocks => {
                let block = u64::from(hands.device()?.block_size()?);
                ioctl(hands, req::SET_SIZE_BLOCKS, SIZE / block)
            }
            Call::SetTimeout => ioctl(hands, req::SET_TIMEOUT, 3600),
            Call::SetFlags => ioctl(hands, req::SET_FLAGS, hands.flags),
            Call::DoIt => ioctl(hands, req::DO_IT, 0),
            Call::ClearQue => ioctl(hands, req::CLEAR_QUE, 0),
            Call::PrintDebug => ioctl(hands, req::PRINT_DEBUG, 0),
            Call::IoctlDisconnect => ioctl(hands, req::DISCONNECT, 0),
            Call::ClearSock => ioctl(hands, req::CLEAR_SOCK, 0),
            Call::Connect => connect(Some(0), &hands.sockets).map(|answer| answer.map(drop)),
            Call::ConnectOther => match connect(None, &hands.sockets)? {
                Ok(0) => bail!("the device that is attached was taken for free"),
                Ok(other) => disconnect(other),
                Err(errno) => Ok(Err(errno)),
            },
            Call::ConnectAnew => match disconnect(0)? {
                Ok(()) => connect(Some(0), &hands.sockets).map(|answer| answer.map(drop)),
                Err(errno) => Ok(Err(errno)),
            },
            Call::Reconfigure => {
                let settings = [(attr::SIZE_BYTES, SIZE), (attr::TIMEOUT, 0)];
                reconfigure(&[], &settings.map(|(number, value)| attr_u64(number, value)))
            }
            Call::ReconfigureBlockSize => reconfigure(&[], &[attr_u64(attr::BLOCK_SIZE_BYTES, 4096)]),
            Call::ReconfigureSockets => reconfigure(&fds(&hands.sockets), &[]),
            Call::Handover => reconfigure(&fds(&hands.sockets), &[attr_flag(attr::HANDOVER)]),
            Call::Status => {
                let answer = Client::open()?.status(None)?;
                Ok(answer.map(drop).map_err(|refusal| refusal.errno))
            }
            Call::Disconnect => disconnect(0),
            Call::Open => Ok(io(File::open(NODE))),
            Call::OpenExclusive => {
                Ok(io(OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(NODE)))
            }
            Call::Close | Call::LastClose => {
                drop(hands.spare.take().context("nothing to close")?);
                Ok(Ok(()))
            }
            Call::Read => Ok(io(read_direct(hands.direct()?, 3 << 20, 4096))),
            Call::Fsync => Ok(io(hands.device()?.file().sync_all())),
            Call::FlushBuffers => Ok(raw_ioctl(hands.device()?.fd(), BLKFLSBUF, 0).map(drop)),
            Call::RereadPartitions => Ok(raw_ioctl(hands.device()?.fd(), BLKRRPART, 0).map(drop)),
            Call::SysfsRead => {
                let names = ["pid", "backend", "size", "ro", "stat", "inflight", "diskseq", "range"];
                read_all(names.map(|name| Path::new(SYSFS).join(name)))?;
                read_all(files(&Path::new(SYSFS).join("nbd"))?).map(Ok)
            }
            Call::QueueRead => Ok(io(fs::read_to_string(Path::new(SYSFS).join("queue/max_sectors_kb")))),
            Call::QueueWrite => Ok(io(fs::write(Path::new(SYSFS).join("queue/nr_requests"), "64"))),
            Call::LimitsWrite => Ok(write_limits()),
            Call::DebugfsRead => read_all(files(Path::new(DEBUGFS))?).map(Ok),
            Call::Rmmod => Ok(hands.driver.remove()),
            Call::CpuOffline => {
                let off = io(fs::write(CPU, "0"));
                let on = io(fs::write(CPU, "1"));
                Ok(off.and(on))
            }
            Call::Suspend => {
                let freezer = File::open(FREEZER).context(FREEZER)?;
                let frozen = raw_ioctl(freezer.as_raw_fd(), SNAPSHOT_FREEZE, 0).map(drop);
                let thawed = raw_ioctl(freezer.as_raw_fd(), SNAPSHOT_UNFREEZE, 0).map(drop);
                Ok(frozen.and(thawed))
            }
        }
    }

    /// Has a process make it. What the process needs it has from `hands`.
    pub fn begin(self, hands: &mut Hands) -> Result<Made> {
        let (go, mut told) = pipe()?;
        let mut keep = hands.keep();
        keep.push(go.as_raw_fd());
        if self == Call::Close {
            keep.extend(descriptors([hands.spare.as_ref()]));
        }
        let mut child = fork_child(&keep, |ready| {
            io::Read::read_exact(&mut &go, &mut [0])?;
            self.prepare(hands)?;
            ready.tell("begins")?;
            let start = Instant::now();
            let answer = self.make(hands)?;
            ready.tell(&format!("{} {answer:?}", start.elapsed().as_millis()))?;
            Ok(())
        })?;
        if self == Call::Close {
            // The child's is the last one then.
            hands.spare = None;
        }
        io::Write::write_all(&mut told, &[1])?;
        child.expect_line("begins").with_context(|| self.name())?;
        Ok(Made { call: self, child, begun: Instant::now() })
    }
}

fn io<T>(result: io::Result<T>) -> Answer {
    result.map(drop).map_err(|error| io_errno(&error))
}

/// A limit that is another one than before.
pub fn write_limits() -> Answer {
    io(fs::write(Path::new(SYSFS).join("queue/max_sectors_kb"), "256"))
}

fn connect(index: Option<u32>, sockets: &[OwnedFd]) -> Result<Result<u32, Errno>> {
    let answer = connect_sockets(&Client::open()?, index, SIZE, sockets, &[])?;
    Ok(answer.map_err(|refusal| refusal.errno))
}

fn disconnect(index: u32) -> Result<Answer> {
    Ok(Client::open()?.disconnect(index)?.map_err(|refusal| refusal.errno))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.collect::<io::Result<Vec<_>>>()?.iter().map(fs::DirEntry::path).collect())
}

/// Those of them that there are.
fn read_all(paths: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    let mut read = 0;
    for path in paths {
        match fs::read_to_string(&path) {
            Ok(_) => read += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    ensure!(read > 0, "there was nothing to read");
    Ok(())
}

/// A call that is being made.
pub struct Made {
    pub call: Call,
    child: Child,
    begun: Instant,
}

impl Made {
    /// Whether it has come to its end.
    pub fn ended(&mut self) -> bool {
        self.child.ended()
    }

    /// Waits for its end: as long as it may take, and the patience that we have with everything. Returns how long it
    /// took, and what was answered.
    pub fn end(&mut self, seconds: u64, after: &str) -> Result<(Duration, String)> {
        let name = self.call.name();
        let bound = patient(20 + seconds);
        let ended = wait_for_within(bound, "its end", || self.child.ended());
        ended.with_context(|| format!("{name} hangs{after}\n{}", describe_task(self.child.pid())))?;
        let took = self.begun.elapsed();
        let said = self.child.next_line().with_context(|| name)?;
        let (own, answer) = said.split_once(' ').context("no time")?;
        let own = Duration::from_millis(own.parse()?);
        Ok((own.min(took), answer.to_owned()))
    }
}

/// The descriptors of files, as far as there are files.
pub fn descriptors<'a>(files: impl IntoIterator<Item = Option<&'a File>>) -> Vec<RawFd> {
    files.into_iter().flatten().map(AsRawFd::as_raw_fd).collect()
}
