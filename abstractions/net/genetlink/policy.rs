// SPDX-License-Identifier: GPL-2.0

//! Which attributes there are, and what they must hold.
//!
//! C header: [`include/net/netlink.h`](srctree/include/net/netlink.h)

use crate::abstractions::compat::bindings;

/// What one attribute must hold (`struct nla_policy`).
///
/// Without strict validation the C side takes numbers that are longer than their type, and warns;
/// shorter ones, and strings and nests that are out of bounds, it refuses with `ERANGE`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Policy(bindings::nla_policy);

// SAFETY: It is plain data, and what it points to lives for ever and is not changed.
unsafe impl Send for Policy {}

// SAFETY: As above.
unsafe impl Sync for Policy {}

impl Policy {
    /// No such attribute: ignored, or refused by strict validation.
    pub(crate) const UNSPEC: Self = Self::of(bindings::NLA_UNSPEC, 0);
    /// A number of 8 bits.
    pub(crate) const U8: Self = Self::of(bindings::NLA_U8, 0);
    /// A number of 16 bits.
    pub(crate) const U16: Self = Self::of(bindings::NLA_U16, 0);
    /// A number of 32 bits.
    pub(crate) const U32: Self = Self::of(bindings::NLA_U32, 0);
    /// A number of 64 bits.
    pub(crate) const U64: Self = Self::of(bindings::NLA_U64, 0);
    /// Nothing: that the attribute is there says it all.
    pub(crate) const FLAG: Self = Self::of(bindings::NLA_FLAG, 0);
    /// Attributes, which are not looked into.
    pub(crate) const NESTED: Self = Self::of(bindings::NLA_NESTED, 0);

    const fn of(kind: u32, len: u16) -> Self {
        let mut policy: bindings::nla_policy = pin_init::zeroed();
        // There are less than 256 kinds.
        policy.type_ = kind as u8;
        policy.len = len;
        Self(policy)
    }

    /// A string that need not end in NUL, of at most `max` bytes without it; 0 for no bound.
    #[inline]
    pub(crate) const fn string(max: u16) -> Self {
        Self::of(bindings::NLA_STRING, max)
    }

    /// A string that ends in NUL, of at most `max` bytes without it; 0 for no bound.
    #[inline]
    pub(crate) const fn nul_string(max: u16) -> Self {
        Self::of(bindings::NLA_NUL_STRING, max)
    }

    /// Bytes, at most `max` of them; 0 for no bound.
    #[inline]
    pub(crate) const fn binary(max: u16) -> Self {
        Self::of(bindings::NLA_BINARY, max)
    }

    /// Attributes, which have to keep to `policies`.
    pub(crate) const fn nested<const N: usize>(policies: &'static Policies<N>) -> Self {
        let mut policy = Self::of(bindings::NLA_NESTED, policies.max_attribute());
        policy.0.__bindgen_anon_1.nested_policy = policies.as_ptr();
        policy
    }
}

/// A policy for each attribute, by the attribute's number; 0 is no attribute.
///
/// `N` is one more than the highest attribute's number.
#[repr(transparent)]
pub(crate) struct Policies<const N: usize>([Policy; N]);

impl<const N: usize> Default for Policies<N> {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Policies<N> {
    /// No attribute is known.
    #[inline]
    pub(crate) const fn new() -> Self {
        assert!(
            N > 0 && N <= 1 << u16::BITS,
            "attribute numbers have 16 bits"
        );
        Self([Policy::UNSPEC; N])
    }

    /// Attribute `number` is known, and must hold what `policy` says.
    ///
    /// For constants: panics, which fails the build there, if the number is 0 or not below `N`.
    #[must_use]
    #[allow(clippy::indexing_slicing)]
    pub(crate) const fn with(mut self, number: u16, policy: Policy) -> Self {
        assert!(number != 0, "0 is no attribute");
        self.0[number as usize] = policy;
        self
    }

    /// The policies, as [`super::Declaration`] wants them.
    #[inline]
    pub(crate) const fn as_slice(&self) -> &[Policy] {
        &self.0
    }

    /// The highest attribute's number.
    #[inline]
    pub(super) const fn max_attribute(&self) -> u16 {
        // `new` has seen to it that this fits, and that `N` is not 0.
        N.saturating_sub(1) as u16
    }

    #[inline]
    pub(super) const fn as_ptr(&self) -> *const bindings::nla_policy {
        (&raw const self.0).cast()
    }
}
