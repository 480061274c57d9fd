// SPDX-License-Identifier: GPL-2.0

//! Pages that data is copied to once, to be sent without the socket's copying it again.
//!
//! To splice the pages of a request itself would spare that one copy too. But a server may answer a
//! write before it has read it. If it runs on this machine it then reads from the very page, which
//! has another owner by then. These pages belong to the sender, and are not written to while they
//! can still be read.
//!
//! C headers: [`include/linux/socket.h`](srctree/include/linux/socket.h) (`MSG_SPLICE_PAGES`),
//! [`include/linux/highmem.h`](srctree/include/linux/highmem.h)

use crate::{
    abstractions::iov::{Direction, IovIter, Source},
    bindings as extra,
};
use kernel::{
    alloc::flags::{GFP_NOWAIT, __GFP_NOWARN},
    bindings,
    page::{Page, PAGE_SIZE},
    prelude::*,
};

/// A part of a page that something was copied to.
type Part = bindings::bio_vec;

/// Pages of the driver's own, used again and again. They are allocated when they are first needed,
/// and stay until this is dropped. A reader that still has one then keeps it.
pub(crate) struct Staging {
    slots: KVec<Slot>,
    /// How many there may be.
    most: usize,
    /// Which is tried first: what was sent first is read first.
    next: usize,
    /// Counts how often [`Self::clear`] was called.
    round: u32,
    /// The slot that small pieces are put together in, and how much of its page is used.
    shared: Option<(usize, usize)>,
    parts: KVec<Part>,
    bytes: usize,
    iter: bindings::iov_iter,
}

struct Slot {
    page: Page,
    /// When it was written to last.
    round: u32,
}

// SAFETY: The raw pointers are to the pages, which this value keeps.
unsafe impl Send for Staging {}

// SAFETY: As above; `&Staging` gives access to nothing.
unsafe impl Sync for Staging {}

/// No page is free: all are still to be read, or there is no memory for more.
#[derive(Debug)]
pub(crate) struct NoPage;

impl Staging {
    /// No page yet, and `most` at most. Sleeps.
    pub(crate) fn new(most: usize) -> Result<Self> {
        Ok(Self {
            slots: KVec::with_capacity(most, GFP_KERNEL)?,
            most,
            next: 0,
            round: 0,
            shared: None,
            parts: KVec::with_capacity(most.saturating_mul(2), GFP_KERNEL)?,
            bytes: 0,
            // SAFETY: All-zero is a vector of no bytes.
            iter: unsafe { core::mem::zeroed() },
        })
    }

    /// Whether nothing is there to be sent.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Forgets what was put there, sent or not.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.bytes = 0;
        self.round = self.round.wrapping_add(1);
    }

    /// A slot whose page has no reader, and that nothing was put to since [`Self::clear`]. Does not
    /// wait for memory.
    fn free_slot(&mut self) -> Result<usize, NoPage> {
        // Small pieces go on being put to the shared one: the turn is the next one's.
        if self.shared.is_some_and(|(shared, _)| shared == self.next) {
            self.next = self.after(self.next);
        }
        let index = self.next;
        if let Some(slot) = self.slots.get_mut(index) {
            // SAFETY: The page is this value's. Acquire: what its readers did came before.
            let exclusive = unsafe { extra::rnbd_helper_page_ref_is_one(slot.page.as_ptr()) };
            if exclusive && slot.round != self.round {
                slot.round = self.round;
                // If it is the only one it was the shared one after all, and is no longer.
                self.shared = self.shared.filter(|(shared, _)| *shared != index);
                self.next = self.after(index);
                return Ok(index);
            }
        }
        let new = self.slots.len();
        if new >= self.most {
            return Err(NoPage);
        }
        let slot = Slot {
            page: Page::alloc_page(GFP_NOWAIT | __GFP_NOWARN).map_err(|_| NoPage)?,
            round: self.round,
        };
        self.slots.push_within_capacity(slot).map_err(|_| NoPage)?;
        Ok(new)
    }

    /// The slot whose turn it is after another.
    fn after(&self, slot: usize) -> usize {
        match slot.wrapping_add(1) {
            end if end >= self.slots.len() => 0,
            next => next,
        }
    }

    /// Notes a part that was copied, with the one before it if it follows that.
    fn list(&mut self, page: *mut bindings::page, offset: usize, len: usize) -> Result<(), NoPage> {
        // Both are less than a page.
        let (offset, len) = (offset as u32, len as u32);
        match self.parts.last_mut() {
            Some(last)
                if last.bv_page == page && last.bv_offset.wrapping_add(last.bv_len) == offset =>
            {
                last.bv_len = last.bv_len.wrapping_add(len);
            }
            _ => {
                let part = Part {
                    bv_page: page,
                    bv_len: len,
                    bv_offset: offset,
                };
                self.parts.push_within_capacity(part).map_err(|_| NoPage)?;
            }
        }
        self.bytes = self.bytes.saturating_add(len as usize);
        Ok(())
    }

    /// Finds room for a small piece: the page, and where in it.
    fn room(&mut self, len: usize) -> Result<(*mut bindings::page, usize), NoPage> {
        let (index, used) = match self.shared {
            Some((index, used)) if used.saturating_add(len) <= PAGE_SIZE => (index, used),
            _ => (self.free_slot()?, 0),
        };
        self.shared = Some((index, used.saturating_add(len)));
        let slot = self.slots.get_mut(index).ok_or(NoPage)?;
        slot.round = self.round;
        Ok((slot.page.as_ptr(), used))
    }

    /// Copies bytes, a page at most.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), NoPage> {
        if bytes.len() > PAGE_SIZE {
            return Err(NoPage);
        }
        let (page, offset) = self.room(bytes.len())?;
        self.list(page, offset, bytes.len())?;
        // SAFETY: The page is this value's, and from `offset` on there is room for the bytes, which
        // no one reads yet.
        unsafe {
            extra::rnbd_helper_memcpy_to_page(page, offset, bytes.as_ptr().cast(), bytes.len())
        };
        Ok(())
    }

    /// Copies the first bytes of what `segment` describes: as many as lie in its first page.
    /// Returns how many.
    ///
    /// # Safety
    ///
    /// The segment's memory must be allocated, and may be read.
    pub(crate) unsafe fn push_segment(&mut self, segment: &Part) -> Result<usize, NoPage> {
        let from = segment.bv_offset as usize;
        // The pages of a segment follow each other, and so do their descriptors.
        let source = segment.bv_page.wrapping_add(from / PAGE_SIZE);
        let from = from % PAGE_SIZE;
        let len = (segment.bv_len as usize).min(PAGE_SIZE.wrapping_sub(from));
        if len < PAGE_SIZE {
            let (page, offset) = self.room(len)?;
            self.list(page, offset, len)?;
            // SAFETY: By the safety requirement; the page is this value's, and no one reads yet
            // what lies from `offset` on.
            unsafe { extra::rnbd_helper_memcpy_page(page, offset, source, from, len) };
        } else {
            let index = self.free_slot()?;
            let page = self.slots.get(index).ok_or(NoPage)?.page.as_ptr();
            self.list(page, 0, len)?;
            // SAFETY: As above.
            unsafe { extra::rnbd_helper_copy_highpage(page, source) };
        }
        Ok(len)
    }
}

// SAFETY: The parts are of pages that `self` keeps, and were copied to. A holder of a
// reference to a page may read these parts for as long: a page that others refer to is only written
// to behind what was listed.
unsafe impl IovIter<Source> for Staging {
    const FLAGS: u32 = bindings::MSG_SPLICE_PAGES;

    fn as_raw(&mut self) -> *mut bindings::iov_iter {
        // SAFETY: `parts` holds as many elements, of `bytes` bytes in all.
        unsafe {
            bindings::iov_iter_bvec(
                &mut self.iter,
                Source::RAW,
                self.parts.as_ptr(),
                self.parts.len(),
                self.bytes,
            );
        }
        &mut self.iter
    }
}
