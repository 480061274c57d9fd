// SPDX-License-Identifier: GPL-2.0

//! The data of requests, to be sent and received.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use super::{Operations, Request};
use crate::abstractions::{
    bvec::{BioBvecs, BvecList, NoRoom},
    iov::{BvecIter, Dest, Direction, Source},
    net::staging::Staging,
};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::bindings;

impl<T: Operations> Request<T> {
    /// The request's data to be sent, a piece for each of its bios, from `skip` bytes on.
    #[inline]
    pub(crate) fn source(&self, skip: usize) -> BioData<'_, Source> {
        self.pieces(skip)
    }

    /// The request's data to be received, a piece for each of its bios, from `skip` bytes on.
    #[inline]
    pub(crate) fn dest(&self, skip: usize) -> BioData<'_, Dest> {
        self.pieces(skip)
    }

    fn bios(&self) -> impl Iterator<Item = *mut bindings::bio> + '_ {
        // SAFETY: By the type invariant; the list of bios does not change while the request is the
        // driver's.
        let first = NonNull::new(unsafe { (*self.as_raw()).bio });
        // SAFETY: As above.
        let next = |bio: &NonNull<bindings::bio>| NonNull::new(unsafe { (*bio.as_ptr()).bi_next });
        core::iter::successors(first, next).map(NonNull::as_ptr)
    }

    /// How many elements [`Request::push_source`] adds at most to a list.
    pub(crate) fn nr_bvecs(&self) -> usize {
        // SAFETY: By the type invariant the bios stay as they are meanwhile.
        let count = |bio| unsafe { BioBvecs::of(bio) }.count();
        self.bios().map(count).sum()
    }

    /// Adds the request's data to a list, from `skip` bytes on, to be received. If it does not fit,
    /// a part may be added.
    pub(crate) fn push_dest<'a>(
        &'a self,
        list: &mut BvecList<'a, Dest>,
        skip: usize,
    ) -> Result<(), NoRoom> {
        self.push(list, skip)
    }

    /// Copies the request's data, from `skip` bytes on, as far as there are pages for it. Returns how
    /// many bytes.
    pub(crate) fn stage(&self, staging: &mut Staging, mut skip: usize) -> usize {
        let mut done = 0_usize;
        // SAFETY: By the type invariant the bios stay as they are meanwhile.
        let rest = |bio| unsafe { BioBvecs::of(bio) }.skip_bytes(&mut skip);
        for mut segment in self.bios().flat_map(rest) {
            while segment.bv_len != 0 {
                // SAFETY: By the type invariant its pages stay while the request is the driver's.
                let Ok(copied) = (unsafe { staging.push_segment(&segment) }) else {
                    return done;
                };
                done = done.saturating_add(copied);
                segment.bv_offset = segment.bv_offset.wrapping_add(copied as u32);
                segment.bv_len = segment.bv_len.wrapping_sub(copied as u32);
            }
        }
        done
    }

    /// Adds the request's data to a list, from `skip` bytes on, to be sent. If it does not fit, a
    /// part may be added.
    pub(crate) fn push_source<'a>(
        &'a self,
        list: &mut BvecList<'a, Source>,
        skip: usize,
    ) -> Result<(), NoRoom> {
        self.push(list, skip)
    }

    fn push<'a, D: Direction>(
        &'a self,
        list: &mut BvecList<'a, D>,
        skip: usize,
    ) -> Result<(), NoRoom> {
        self.bios()
            // SAFETY: By the type invariant the bios and their pages stay while the request is
            // borrowed; it is of a kind that is sent, or received.
            .try_fold(skip, |skip, bio| unsafe { list.push_bio(bio, skip) })
            .map(|_| ())
    }

    #[inline]
    fn pieces<D>(&self, skip: usize) -> BioData<'_, D> {
        BioData {
            // SAFETY: By the type invariant; the list of bios does not change while the request
            // is the driver's.
            bio: unsafe { (*self.as_raw()).bio },
            skip,
            _request: PhantomData,
        }
    }
}

/// The data of a request, piece by piece. See [`Request::source`] and [`Request::dest`].
///
/// # Invariants
///
/// `bio` is null or a bio of a request that is the driver's for `'a`.
pub(crate) struct BioData<'a, D> {
    bio: *mut bindings::bio,
    skip: usize,
    _request: PhantomData<(&'a (), D)>,
}

impl<'a, D> BioData<'a, D> {
    /// Whether [`Iterator::next`] would give nothing more.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        self.bio.is_null()
    }
}

impl<'a, D: crate::abstractions::iov::Direction> Iterator for BioData<'a, D> {
    type Item = BvecIter<'a, D>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.bio.is_null() {
            let bio = self.bio;
            // SAFETY: By the type invariant `bio` is valid.
            self.bio = unsafe { (*bio).bi_next };
            // SAFETY: As above; its pages stay allocated for `'a`.
            let mut piece = unsafe { BvecIter::from_bio(bio) };
            let len = piece.count();
            if self.skip >= len {
                self.skip = self.skip.wrapping_sub(len);
                continue;
            }
            piece.advance(self.skip);
            self.skip = 0;
            return Some(piece);
        }
        None
    }
}
