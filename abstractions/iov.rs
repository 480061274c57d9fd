// SPDX-License-Identifier: GPL-2.0

//! I/O vectors over kernel memory.
//!
//! `kernel::iov` has those that the kernel hands to a driver; these are made by the driver.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use super::compat::bi_offset;
use core::marker::PhantomData;
use kernel::bindings;

/// Data is read from the vector.
pub(crate) enum Source {}

/// Data is written to the vector.
pub(crate) enum Dest {}

/// [`Source`] or [`Dest`].
pub(crate) trait Direction {
    /// The C side's number for it.
    const RAW: u32;
}

impl Direction for Source {
    const RAW: u32 = bindings::ITER_SOURCE;
}

impl Direction for Dest {
    const RAW: u32 = bindings::ITER_DEST;
}

/// What [`crate::abstractions::net::socket::Socket`] sends from and receives into.
///
/// # Safety
///
/// [`IovIter::as_raw`] must return a valid vector, of memory that may be used as `D` says for as
/// long as `self` is borrowed.
pub(crate) unsafe trait IovIter<D: Direction> {
    /// How it is to be sent (`MSG_*`): nothing special.
    const FLAGS: u32 = 0;

    /// The vector, for the C side to copy.
    fn as_raw(&mut self) -> *mut bindings::iov_iter;
}

#[inline]
fn empty() -> bindings::iov_iter {
    // SAFETY: All-zero is a vector of no bytes.
    unsafe { core::mem::zeroed() }
}

/// How many bytes a vector has left.
#[inline]
pub(crate) fn count(iter: &bindings::iov_iter) -> usize {
    // SAFETY: All kinds of vector keep their length there.
    unsafe { iter.__bindgen_anon_1.__bindgen_anon_1.as_ref().count }
}

/// An I/O vector over the data of a bio, or of a part of it.
///
/// # Invariants
///
/// `iter` describes pages that stay allocated for `'a`, and that may be used as `D` says.
pub(crate) struct BvecIter<'a, D> {
    iter: bindings::iov_iter,
    _pages: PhantomData<(&'a (), D)>,
}

impl<D: Direction> BvecIter<'_, D> {
    /// The data of a bio.
    ///
    /// # Safety
    ///
    /// `bio` is valid, is not advanced, and its pages stay allocated, for the returned lifetime.
    pub(crate) unsafe fn from_bio(bio: *mut bindings::bio) -> Self {
        // SAFETY: By the safety requirement. The fields are packed: they are copied.
        let (table, index, offset, size) = unsafe {
            (
                (*bio).bi_io_vec,
                (*bio).bi_iter.bi_idx as usize,
                bi_offset((*bio).bi_iter) as usize,
                (*bio).bi_iter.bi_size as usize,
            )
        };
        // A bio without data, such as a discard's, has no table to look into.
        let mut segments = 0_usize;
        let mut covered = 0_usize;
        let end = size.saturating_add(offset);
        let has_data = !table.is_null() && size != 0;
        while has_data && covered < end {
            // SAFETY: The table holds `bi_size` bytes from `bi_idx` and `bi_offset` on.
            let len = unsafe { (*table.add(index.wrapping_add(segments))).bv_len };
            covered = covered.saturating_add(len as usize);
            segments = segments.wrapping_add(1);
        }
        let mut iter = empty();
        if has_data {
            // SAFETY: `segments` elements from `bi_idx` on were counted above.
            unsafe {
                bindings::iov_iter_bvec(&mut iter, D::RAW, table.add(index), segments, size);
            }
            iter.iov_offset = offset;
        }
        // INVARIANT: By the safety requirement.
        Self {
            iter,
            _pages: PhantomData,
        }
    }

    /// How many bytes are left.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        count(&self.iter)
    }

    /// Leaves `bytes` bytes out; all, if there are not so many.
    #[inline]
    pub(crate) fn advance(&mut self, bytes: usize) {
        let bytes = bytes.min(self.count());
        if bytes != 0 {
            // SAFETY: By the type invariant; there are that many bytes.
            unsafe { bindings::iov_iter_advance(&mut self.iter, bytes) };
        }
    }
}

impl BvecIter<'_, Dest> {
    /// Copies `bytes` to where the vector begins, as many as there is room for, and leaves them
    /// out. Returns how many.
    #[inline]
    pub(crate) fn copy_to_iter(&mut self, bytes: &[u8]) -> usize {
        // SAFETY: By the type invariant; the copy ends with the shorter of the two.
        unsafe { bindings::_copy_to_iter(bytes.as_ptr().cast(), bytes.len(), &mut self.iter) }
    }
}

// SAFETY: By the type invariant.
unsafe impl<D: Direction> IovIter<D> for BvecIter<'_, D> {
    #[inline]
    fn as_raw(&mut self) -> *mut bindings::iov_iter {
        &mut self.iter
    }
}

/// An I/O vector over bytes in the kernel's memory, to be sent.
///
/// # Invariants
///
/// `vec` is the memory that was borrowed for `'a`.
pub(crate) struct Kvec<'a> {
    vec: bindings::kvec,
    iter: bindings::iov_iter,
    _bytes: PhantomData<&'a [u8]>,
}

impl<'a> Kvec<'a> {
    /// Bytes to be sent.
    pub(crate) fn source(bytes: &'a [u8]) -> Self {
        Self {
            vec: bindings::kvec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            },
            iter: empty(),
            _bytes: PhantomData,
        }
    }
}

// SAFETY: By the type invariant; a source is only read.
unsafe impl IovIter<Source> for Kvec<'_> {
    #[inline]
    fn as_raw(&mut self) -> *mut bindings::iov_iter {
        // Made here rather than in `source`, for it points to `vec`, which moves with `self`.
        // SAFETY: `vec` describes memory that is borrowed for as long as `self` is.
        unsafe {
            bindings::iov_iter_kvec(&mut self.iter, Source::RAW, &self.vec, 1, self.vec.iov_len);
        }
        &mut self.iter
    }
}
