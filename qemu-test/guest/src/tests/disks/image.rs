// SPDX-License-Identifier: GPL-2.0
//! Images whose every sector names its image, and servers of them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::attach::Setup;
use crate::process::{Child, wait_for};
use crate::server::{Action, Command, Export, Request, Server};
use crate::tests::Checks;

pub const SIZE: u64 = 16 << 20;
pub const SECTOR: usize = 512;
const MAGIC: u64 = u64::from_le_bytes(*b"an image");

/// `length` bytes of image `name` at `offset`: no two sectors are the same, of whatever image.
pub fn content(name: u64, offset: u64, length: usize) -> Vec<u8> {
    let first = offset / SECTOR as u64;
    let words = |number: u64| {
        let rest = (name << 40) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let rest = std::iter::repeat_n(rest | 1, SECTOR / 8 - 3);
        [MAGIC, name, number].into_iter().chain(rest).flat_map(u64::to_le_bytes)
    };
    (first..).take(length / SECTOR).flat_map(words).collect()
}

/// The images of which there are sectors in `data`.
pub fn names(data: &[u8]) -> BTreeSet<u64> {
    let word = |sector: &[u8], at: usize| {
        u64::from_le_bytes(std::array::from_fn(|index| sector.get(at * 8 + index).copied().unwrap_or(0)))
    };
    let ours = data.chunks(SECTOR).filter(|sector| word(sector, 0) == MAGIC);
    ours.map(|sector| word(sector, 1)).collect()
}

pub struct Image {
    pub server: Server,
    pub name: u64,
}

impl Image {
    pub fn new(name: u64) -> Result<Image> {
        Image::behaving(name, |_| Action::Serve)
    }

    pub fn behaving(
        name: u64,
        behaviour: impl Fn(&Request) -> Action + Send + Sync + 'static,
    ) -> Result<Image> {
        Image::sized(name, SIZE, behaviour)
    }

    pub fn sized(
        name: u64,
        size: u64,
        behaviour: impl Fn(&Request) -> Action + Send + Sync + 'static,
    ) -> Result<Image> {
        let export = Export::memory(size)?;
        let whole = size as usize / SECTOR * SECTOR;
        export.write(0, &content(name, 0, whole))?;
        Ok(Image { server: Server::with_behaviour(export, behaviour), name })
    }

    pub fn setup(&self) -> Setup {
        Setup::for_server(&self.server)
    }

    /// A process of its own, which is the client, has device 0 attached to it by ioctl.
    pub fn attach(&self) -> Result<Child> {
        self.setup().attach_in_child(0, &self.server)
    }

    /// Of data that should be what this image begins with, how many sectors are not.
    fn other_sectors(&self, data: &[u8]) -> usize {
        let own = content(self.name, 0, data.len());
        data.chunks(SECTOR).zip(own.chunks(SECTOR)).filter(|(is, should)| is != should).count()
    }

    /// The client is killed, and the image is as it was.
    pub fn ends(&self, client: &mut Child, mut checks: Checks) -> Result<()> {
        checks.also(self.reads("/dev/nbd0"));
        client.kill()?;
        self.server.wait_closed()?;
        checks.also(self.untouched());
        checks.done()
    }

    /// What it holds now is what it held at first, and it was not asked to change it.
    pub fn untouched(&self) -> Result<()> {
        let mut checks = Checks::default();
        for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
            let seen = self.server.seen_of(command);
            let what = format!("{} {command:?} reached the next image: {:?}", seen.len(), seen.first());
            checks.that(&what, seen.is_empty());
        }
        let size = self.server.export().size() as usize / SECTOR * SECTOR;
        let now = self.server.export().read(0, size)?;
        let other = self.other_sectors(&now);
        checks.that(&format!("{other} sectors of the next image were changed"), other == 0);
        checks.done()
    }

    /// Who opens it now reads what it holds.
    pub fn reads(&self, path: impl AsRef<Path>) -> Result<()> {
        let data = std::fs::read(path.as_ref())?;
        let size = self.server.export().size() as usize;
        let path = path.as_ref().display();
        ensure!(data.len() == size, "{path} has {} bytes, not {size}", data.len());
        let whole = size / SECTOR * SECTOR;
        let other = self.other_sectors(&data[..whole]);
        ensure!(
            other == 0,
            "{other} sectors of {path} are not those of its image, but of {:?}",
            names(&data)
        );
        Ok(())
    }

    /// What was read, if it was, must not be this image's.
    pub fn not_in(&self, what: &str, read: io::Result<impl AsRef<[u8]>>, checks: &mut Checks) {
        match read {
            Ok(data) => {
                let names = names(data.as_ref());
                println!("{what} gave {} bytes of images {names:?}", data.as_ref().len());
                checks.that(&format!("{what} gave bytes of the next image"), !names.contains(&self.name));
            }
            Err(error) => println!("{what} gave {error}"),
        }
    }
}

/// The client is killed, and with that the attachment ends.
pub fn dies(image: &Image, client: &mut Child) -> Result<()> {
    client.kill()?;
    image.server.wait_closed()?;
    wait_for("the device to have no owner", || !crate::device::attached(0))
}

/// Clean pages are forgotten.
pub fn drop_caches() -> Result<()> {
    Ok(std::fs::write("/proc/sys/vm/drop_caches", "3")?)
}
