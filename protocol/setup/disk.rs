// SPDX-License-Identifier: GPL-2.0

//! Which disk a device has, and whether that one can serve the next generation (invariant G4).
//!
//! What two generations of a device share is its number. A disk serves one generation, and those
//! that continue it; another one only after a moment, since that one had gone, in which no one had
//! the disk open: the block layer then holds nothing of it any more (a disk with partitions is not
//! cleaned: see the driver). Otherwise the next generation
//! gets a disk of its own.
//!
//! ```text
//!            added          start              detached        next disk
//!   Absent ────────▶ Clean ───────▶ Attached ───────────▶ Left ────────▶ Absent
//!                      ▲               ▲ continuation     │ │
//!                      │               └──────────────────┘ │
//!                      └────────────────────────────────────┘ cleaned: no one has it open
//! ```

/// What a device's disk may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contents {
    /// There is no disk.
    Absent,
    /// Nothing of any generation.
    Clean,
    /// That of the generation which runs or drains.
    Attached,
    /// That of a generation which has left it.
    Left,
}

/// What is needed to start a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskPlan {
    /// The disk is clean: it can serve.
    Keep,
    /// The generation continues the last one, on the same disk and with all that it holds.
    Continue,
    /// Another disk.
    Replace,
}

/// The disk of a device.
#[derive(Debug)]
pub struct DiskState {
    /// How many disks the device has had: names the one that it has.
    serial: u64,
    contents: Contents,
    /// How often disks of the device are open, those that it had before included.
    opens: u32,
}

impl Default for DiskState {
    /// A device that has no disk yet.
    fn default() -> Self {
        Self {
            serial: 0,
            contents: Contents::Absent,
            opens: 0,
        }
    }
}

impl DiskState {
    /// Whether `serial` names the disk that the device has, and not one that it had before.
    pub fn is_current(&self, serial: u64) -> bool {
        self.serial == serial && self.contents != Contents::Absent
    }

    /// Whether the disk holds what the last generation has left.
    pub(super) fn is_left(&self) -> bool {
        self.contents == Contents::Left
    }

    /// How often disks of the device are open.
    pub fn opens(&self) -> u32 {
        self.opens
    }

    /// A disk of the device, or a partition, is opened.
    pub fn opened(&mut self) {
        self.opens = self.opens.saturating_add(1);
    }

    /// A disk of the device, or a partition, was closed.
    pub fn closed(&mut self) {
        self.opens = self.opens.saturating_sub(1);
    }

    /// The device gives up its disk, for another one: returns the name of that. None, if a generation
    /// is attached to the one it has.
    pub fn replace(&mut self) -> Option<u64> {
        if self.contents == Contents::Attached {
            return None;
        }
        self.serial = self.serial.wrapping_add(1);
        self.contents = Contents::Absent;
        Some(self.serial)
    }

    /// The disk named `serial` is there.
    pub fn added(&mut self, serial: u64) {
        if self.serial == serial && self.contents == Contents::Absent {
            self.contents = Contents::Clean;
        }
    }

    /// What a generation needs that continues the last one, or does not.
    pub(super) fn plan(&self, continues: bool) -> DiskPlan {
        match self.contents {
            Contents::Left if continues => DiskPlan::Continue,
            Contents::Clean => DiskPlan::Keep,
            Contents::Absent | Contents::Attached | Contents::Left => DiskPlan::Replace,
        }
    }

    /// A generation starts on the disk.
    pub(super) fn attached(&mut self) {
        self.contents = Contents::Attached;
    }

    /// The generation has left the disk, which is empty: no request of it is under way.
    pub fn detached(&mut self) {
        if self.contents == Contents::Attached {
            self.contents = Contents::Left;
        }
    }

    /// Whether the disk named `serial` holds what a generation has left, to be cleaned of it as soon
    /// as no one has it open.
    pub fn may_clean(&self, serial: u64) -> bool {
        self.serial == serial && self.contents == Contents::Left
    }

    /// The disk named `serial` was cleaned, while no one had it open.
    pub fn cleaned(&mut self, serial: u64) {
        if self.may_clean(serial) {
            self.contents = Contents::Clean;
        }
    }
}
