// SPDX-License-Identifier: GPL-2.0

//! A disk, as the block layer has it (`block/bdev.c`), and who has it open.

use crate::explore::{Number, TryMutex, TryMutexGuard};
use loom::sync::Mutex;
use std::sync::{Arc, Mutex as StdMutex};

/// Who has a disk open, written down from outside; no part of the model.
#[derive(Default)]
pub struct Book {
    /// A generation has the disk, from its start on.
    pub taken: bool,
    /// The generation that is attached, or 0.
    pub attached: u32,
    /// Openers, and the last generation that each has seen on the disk, or 0.
    pub openers: Vec<(u32, u32)>,
}

/// A `struct gendisk`.
pub struct Disk {
    pub serial: u64,
    /// `open_mutex`; and whether the disk is in the system.
    pub open_lock: TryMutex<bool>,
    /// `bd_openers`, changed under that lock.
    pub openers: Number,
    /// The generation that is attached, or 0. A request has the lock, and so has who freezes the queue.
    pub attached: Mutex<u32>,
    /// The generation whose data the page cache holds, or 0.
    pub pages: Number,
    pub book: StdMutex<Book>,
}

impl Disk {
    pub fn new(serial: u64) -> Arc<Self> {
        Arc::new(Self {
            serial,
            open_lock: TryMutex::new(true),
            openers: Number::new(0),
            attached: Mutex::new(0),
            pages: Number::new(0),
            book: StdMutex::default(),
        })
    }

    /// Of an opener: writes to the page cache, if there is anything attached to write to.
    pub fn write(&self) {
        let attached = self.attached.lock().unwrap();
        if *attached != 0 {
            self.pages.store_release(*attached);
        }
    }

    /// `del_gendisk`.
    pub fn remove(&self) {
        *self.open_lock.lock() = false;
    }

    /// A generation comes: what is there of another one that it does not continue?
    pub fn attach(&self, generation: u32, continues: bool) {
        let mut attached = self.attached.lock().unwrap();
        *attached = generation;
        let mut book = self.book.lock().unwrap();
        book.attached = generation;
        for (_, seen) in &mut book.openers {
            assert!(
                continues || *seen == 0,
                "a generation starts on a disk that an opener of another still has open"
            );
            *seen = generation;
        }
        drop(book);
        assert!(
            continues || self.pages.load() == 0,
            "a generation starts on a disk that holds pages of another"
        );
    }

    /// `freeze().detach()`; and the disk has no capacity any more.
    pub fn detach(&self) {
        *self.attached.lock().unwrap() = 0;
        let mut book = self.book.lock().unwrap();
        book.attached = 0;
        book.taken = false;
    }

    pub fn try_unopened(&self) -> Option<TryMutexGuard<'_, bool>> {
        let held = self.open_lock.try_lock()?;
        (self.openers.load() == 0).then_some(held)
    }

    /// `Unopened::forget_medium`. False if the disk has a capacity.
    pub fn forget_medium(&self) -> bool {
        let attached = self.attached.lock().unwrap();
        if *attached != 0 {
            return false;
        }
        assert!(
            !self.book.lock().unwrap().taken,
            "the partitions of a generation that is being started are dropped"
        );
        true
    }
}
