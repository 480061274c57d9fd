// SPDX-License-Identifier: GPL-2.0

//! Lists of bvecs, of requests and of buffers, to be sent or received in one call.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use super::{
    compat::bi_offset,
    iov::{Dest, Direction, IovIter, Source},
};
use crate::bindings as extra;
use core::{marker::PhantomData, ops::Range};
use kernel::{bindings, prelude::*};

/// A buffer that a [`BvecList`] can refer to: its memory has pages.
pub(crate) struct Buffer(KVec<u8>);

impl Buffer {
    /// A buffer of `size` zeroes. Sleeps.
    pub(crate) fn new(size: usize) -> Result<Self> {
        Ok(Self(KVec::from_elem(0, size, GFP_KERNEL)?))
    }

    /// The bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to be changed.
    #[inline]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// The memory of a [`BvecList`]'s elements, to be used again and again.
pub(crate) struct BvecArray(KVec<bindings::bio_vec>);

impl BvecArray {
    /// Room for so many elements. Sleeps.
    pub(crate) fn new(elements: usize) -> Result<Self> {
        Ok(Self(KVec::with_capacity(elements, GFP_KERNEL)?))
    }

    /// A list without elements.
    pub(crate) fn list<D: Direction>(&mut self) -> BvecList<'_, D> {
        self.0.clear();
        // INVARIANT: There are no elements.
        BvecList {
            elements: &mut self.0,
            bytes: 0,
            // SAFETY: All-zero is a vector of no bytes.
            iter: unsafe { core::mem::zeroed() },
            _memory: PhantomData,
        }
    }
}

// SAFETY: Only a list gives the elements a meaning, and it borrows them.
unsafe impl Send for BvecArray {}

// SAFETY: As above.
unsafe impl Sync for BvecArray {}

/// There is no room for another element.
#[derive(Debug)]
pub(crate) struct NoRoom;

/// Pieces of memory, one after the other.
///
/// # Invariants
///
/// The elements describe memory that stays allocated for `'a`, that may be used as `D` says, and
/// that has `bytes` bytes in all.
pub(crate) struct BvecList<'a, D> {
    elements: &'a mut KVec<bindings::bio_vec>,
    bytes: usize,
    iter: bindings::iov_iter,
    _memory: PhantomData<(&'a mut [u8], D)>,
}

impl<'a, D: Direction> BvecList<'a, D> {
    fn push(&mut self, element: bindings::bio_vec) -> Result<(), NoRoom> {
        let bytes = element.bv_len as usize;
        self.elements
            .push_within_capacity(element)
            .map_err(|_| NoRoom)?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Adds a piece of a buffer.
    ///
    /// # Safety
    ///
    /// The piece must stay allocated for `'a`, and may be used as `D` says.
    unsafe fn push_piece(&mut self, piece: *mut [u8]) -> Result<(), NoRoom> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut element = bindings::bio_vec::default();
        let len = u32::try_from(piece.len()).map_err(|_| NoRoom)?;
        // SAFETY: The piece is part of a `Buffer`, whose allocator gives memory that has pages.
        unsafe { extra::rnbd_helper_bvec_set_virt(&mut element, piece.cast(), len) };
        // INVARIANT: By the safety requirement.
        self.push(element)
    }

    /// Adds what a bio has to be done yet, without its first `skip` bytes. Returns how many of
    /// these lie behind its end.
    ///
    /// # Safety
    ///
    /// `bio` must be valid, must not be advanced, and its pages must stay allocated and may be used
    /// as `D` says, for `'a`.
    pub(crate) unsafe fn push_bio(
        &mut self,
        bio: *mut bindings::bio,
        mut skip: usize,
    ) -> Result<usize, NoRoom> {
        // SAFETY: By the safety requirement.
        for element in unsafe { BioBvecs::of(bio) }.skip_bytes(&mut skip) {
            // INVARIANT: By the safety requirement.
            self.push(element)?;
        }
        Ok(skip)
    }
}

impl<'a> BvecList<'a, Source> {
    /// Adds bytes to be sent; none, if the range is not one of the buffer's.
    pub(crate) fn push_bytes(
        &mut self,
        buffer: &'a Buffer,
        range: Range<usize>,
    ) -> Result<(), NoRoom> {
        let piece = buffer.0.get(range).unwrap_or_default();
        // SAFETY: It is borrowed for `'a`, and a source is only read.
        unsafe { self.push_piece(core::ptr::from_ref(piece).cast_mut()) }
    }
}

impl<'a> BvecList<'a, Dest> {
    /// Adds room for bytes to be received; none, if the range is not one of the buffer's.
    pub(crate) fn push_bytes_mut(
        &mut self,
        buffer: &'a mut Buffer,
        range: Range<usize>,
    ) -> Result<(), NoRoom> {
        let piece = buffer.0.get_mut(range).unwrap_or_default();
        // SAFETY: It is borrowed exclusively for `'a`.
        unsafe { self.push_piece(core::ptr::from_mut(piece)) }
    }
}

// SAFETY: By the type invariant.
unsafe impl<D: Direction> IovIter<D> for BvecList<'_, D> {
    fn as_raw(&mut self) -> *mut bindings::iov_iter {
        // SAFETY: By the type invariant.
        unsafe {
            bindings::iov_iter_bvec(
                &mut self.iter,
                D::RAW,
                self.elements.as_ptr(),
                self.elements.len(),
                self.bytes,
            );
        }
        &mut self.iter
    }
}

/// What a bio has to be done yet, piece by piece.
///
/// # Invariants
///
/// From `next` on the bio's table holds `left` bytes, of the first element without `offset`.
#[derive(Clone)]
pub(crate) struct BioBvecs {
    next: *const bindings::bio_vec,
    offset: u32,
    left: u32,
}

impl BioBvecs {
    /// The pieces of a bio.
    ///
    /// # Safety
    ///
    /// `bio` must be valid, and must neither be advanced nor go, while this is used.
    pub(crate) unsafe fn of(bio: *mut bindings::bio) -> Self {
        // SAFETY: By the safety requirement. The fields are packed: they are copied.
        let (table, index, offset, size) = unsafe {
            (
                (*bio).bi_io_vec,
                (*bio).bi_iter.bi_idx as usize,
                bi_offset((*bio).bi_iter),
                (*bio).bi_iter.bi_size,
            )
        };
        // A bio without data, such as a discard's, has no table to look into, but a size.
        let left = if table.is_null() { 0 } else { size };
        // INVARIANT: That is what the fields mean.
        Self {
            next: table.wrapping_add(index),
            offset,
            left,
        }
    }

    /// What there is without its first `skip` bytes, which are then those that lie behind its end.
    pub(crate) fn skip_bytes(mut self, skip: &mut usize) -> Self {
        while let Some(first) = self.clone().next() {
            let here = (*skip).min(first.bv_len as usize);
            *skip = skip.wrapping_sub(here);
            // INVARIANT: That is no more than the first element has, whose length is 32 bits.
            if here < first.bv_len as usize {
                self.offset = self.offset.wrapping_add(here as u32);
                self.left = self.left.wrapping_sub(here as u32);
                break;
            }
            self.next();
        }
        self
    }
}

impl Iterator for BioBvecs {
    type Item = bindings::bio_vec;

    fn next(&mut self) -> Option<bindings::bio_vec> {
        if self.left == 0 {
            return None;
        }
        // SAFETY: By the type invariant there is an element.
        let whole = unsafe { *self.next };
        let len = whole.bv_len.saturating_sub(self.offset).min(self.left);
        if len == 0 {
            return None;
        }
        let element = bindings::bio_vec {
            bv_page: whole.bv_page,
            bv_len: len,
            bv_offset: whole.bv_offset.wrapping_add(self.offset),
        };
        // INVARIANT: What is left lies behind this element.
        self.next = self.next.wrapping_add(1);
        self.offset = 0;
        self.left = self.left.wrapping_sub(len);
        Some(element)
    }
}
