// SPDX-License-Identifier: GPL-2.0

//! Which disk a generation gets.

use super::Plain;
use rnbd_protocol::setup::DiskPlan;

/// A disk that the device has or had. The device has the last of them, if that is `there`.
pub(super) struct Disk {
    there: bool,
    /// A generation has been on it since it came, or since it was last cleaned.
    pub(super) stained: bool,
    /// A generation is on it.
    busy: bool,
    /// How often it is open.
    opens: u32,
}

impl Plain {
    /// The disk that the device has.
    pub(super) fn disk(&self) -> Option<&Disk> {
        self.disks.last().filter(|disk| disk.there)
    }

    pub(super) fn disk_for(&self, goes_on: bool) -> DiskPlan {
        match self.disk() {
            None => DiskPlan::Replace,
            Some(disk) if !disk.stained => DiskPlan::Keep,
            Some(_) if goes_on => DiskPlan::Continue,
            Some(_) => DiskPlan::Replace,
        }
    }

    /// False if there is no disk as was planned.
    pub(super) fn fit(&mut self, plan: DiskPlan, fits: bool) -> bool {
        if plan != DiskPlan::Replace {
            return true;
        }
        if let Some(last) = self.disks.last_mut() {
            last.there = false;
        }
        self.disks.push(Disk {
            there: fits,
            stained: false,
            busy: false,
            opens: 0,
        });
        fits
    }

    pub(super) fn enter_disk(&mut self) {
        if let Some(disk) = self.disks.last_mut() {
            disk.stained = true;
            disk.busy = true;
        }
    }

    /// All requests of the generation that drains are done.
    pub fn leave_disk(&mut self) {
        if let Some(disk) = self.disks.last_mut() {
            disk.busy = false;
        }
    }

    /// How many disks there were.
    pub fn disks(&self) -> usize {
        self.disks.len()
    }

    pub fn has_disk(&self, number: usize) -> bool {
        self.disks[number].there
    }

    pub fn is_open(&self, number: usize) -> bool {
        self.disks[number].opens > 0
    }

    /// How often all disks are open.
    pub fn opens(&self) -> u32 {
        self.disks.iter().map(|disk| disk.opens).sum()
    }

    pub fn open(&mut self, number: usize) {
        self.disks[number].opens += 1;
    }

    pub fn close(&mut self, number: usize) {
        self.disks[number].opens -= 1;
    }

    /// Somebody has seen that the disk is not open, and cleans it; if it is the device's, and no
    /// generation is on it.
    pub fn clean(&mut self, number: usize) {
        let disk = &mut self.disks[number];
        if disk.there && !disk.busy {
            disk.stained = false;
        }
    }
}
