// SPDX-License-Identifier: GPL-2.0

//! Attributes of a request.
//!
//! C header: [`include/net/netlink.h`](srctree/include/net/netlink.h)

use super::{ExtAck, Policies, Validation};
use crate::abstractions::compat::bindings;
use core::marker::PhantomData;
use kernel::{error::to_result, prelude::*, str::BStr};

/// Bytes of an attribute's header, padded.
pub(super) const HEADER: usize = size_of::<bindings::nlattr>();

/// Bits of a type that are flags.
const FLAGS: u16 = (bindings::NLA_F_NESTED | bindings::NLA_F_NET_BYTEORDER) as u16;

/// Length with padding. What does not fit is too long for any attribute.
#[inline]
pub(super) const fn padded(len: usize) -> usize {
    len.saturating_add(3) & !3
}

/// An attribute that user space sent.
///
/// Nothing is believed of what is in it: numbers that are too short are `ERANGE`.
///
/// # Invariants
///
/// `bytes` are a whole attribute, aligned as a header is: header and payload, no padding.
#[derive(Clone, Copy)]
pub(crate) struct Attribute<'a> {
    bytes: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// # Safety
    ///
    /// `ptr` must be a valid attribute, whole in memory that is not changed for `'a`.
    pub(super) unsafe fn from_raw(ptr: *const bindings::nlattr) -> Self {
        // SAFETY: By the safety requirement. INVARIANT: As above.
        unsafe {
            let len = usize::from((*ptr).nla_len);
            Self {
                bytes: core::slice::from_raw_parts(ptr.cast(), len),
            }
        }
    }

    /// The first attribute in `bytes`, and what follows it; [`None`] if there is no whole one.
    ///
    /// `bytes` must be aligned as a header is.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        if len < HEADER {
            return None;
        }
        // INVARIANT: The caller says that it is aligned.
        let attribute = Self {
            bytes: bytes.get(..len)?,
        };
        // The last one may lack its padding.
        Some((attribute, bytes.get(padded(len)..).unwrap_or_default()))
    }

    #[inline]
    pub(super) fn as_ptr(self) -> *const bindings::nlattr {
        self.bytes.as_ptr().cast()
    }

    fn raw_type(self) -> u16 {
        match self.bytes {
            [_, _, low, high, ..] => u16::from_ne_bytes([*low, *high]),
            _ => 0,
        }
    }

    /// Its number, without flags.
    #[inline]
    pub(crate) fn number(self) -> u16 {
        self.raw_type() & !FLAGS
    }

    /// Whether user space says that it holds attributes (`NLA_F_NESTED`). Older programs do not.
    #[inline]
    pub(crate) fn has_nested_flag(self) -> bool {
        self.raw_type() & bindings::NLA_F_NESTED as u16 != 0
    }

    /// What it holds.
    #[inline]
    pub(crate) fn payload(self) -> &'a [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    #[inline]
    fn start<const N: usize>(self) -> Result<[u8; N]> {
        self.payload().first_chunk().copied().ok_or(ERANGE)
    }

    /// A number of 8 bits. As on the C side, bytes behind it are ignored.
    #[inline]
    pub(crate) fn u8(self) -> Result<u8> {
        Ok(u8::from_ne_bytes(self.start()?))
    }

    /// A number of 16 bits; as [`u8`](Self::u8).
    #[inline]
    pub(crate) fn u16(self) -> Result<u16> {
        Ok(u16::from_ne_bytes(self.start()?))
    }

    /// A number of 32 bits; as [`u8`](Self::u8).
    #[inline]
    pub(crate) fn u32(self) -> Result<u32> {
        Ok(u32::from_ne_bytes(self.start()?))
    }

    /// A number of 64 bits; as [`u8`](Self::u8).
    #[inline]
    pub(crate) fn u64(self) -> Result<u64> {
        Ok(u64::from_ne_bytes(self.start()?))
    }

    /// A string: what is before the first NUL, or all of it.
    pub(crate) fn string(self) -> &'a BStr {
        let payload = self.payload();
        let text = payload.split(|&byte| byte == 0).next();
        BStr::from_bytes(text.unwrap_or_default())
    }

    /// The attributes in it, in their order (`nla_for_each_nested`). What follows the last whole
    /// one is passed over. Nothing is validated.
    #[inline]
    pub(crate) fn nested(self) -> NestedAttributes<'a> {
        NestedAttributes {
            rest: self.payload(),
        }
    }

    /// The attributes in it, by their numbers, after `policies` were kept to. Of several with one
    /// number the last counts.
    ///
    /// # Errors
    ///
    /// `EINVAL` or `ERANGE` for what is not as it must be; `ext_ack` then says what.
    pub(crate) fn parse_nested<const N: usize>(
        self,
        policies: &'static Policies<N>,
        validation: Validation,
        ext_ack: &ExtAck<'_>,
    ) -> Result<Parsed<'a, N>> {
        let flags = match validation {
            Validation::Liberal => bindings::netlink_validation_NL_VALIDATE_LIBERAL,
            Validation::Strict => {
                if !self.has_nested_flag() {
                    ext_ack.set_bad_attr(self);
                    return Err(ext_ack.err_msg(EINVAL, fmt!("NLA_F_NESTED is missing")));
                }
                STRICT
            }
        };
        let payload = self.payload();
        let mut parsed = Parsed {
            table: [core::ptr::null_mut(); N],
            _lifetime: PhantomData,
        };
        // SAFETY: The table has room for the highest number, and the payload is readable and, by
        // the type invariant, aligned. The policies live for ever, for a message points to them.
        // INVARIANT: The table gets pointers to whole attributes in the payload.
        to_result(unsafe {
            bindings::__nla_parse(
                parsed.table.as_mut_ptr(),
                policies.max_attribute().into(),
                payload.as_ptr().cast(),
                payload.len() as i32,
                policies.as_ptr(),
                flags,
                ext_ack.as_raw(),
            )
        })?;
        Ok(parsed)
    }
}

/// All that can be validated (`NL_VALIDATE_STRICT`, a macro).
const STRICT: u32 = bindings::netlink_validation_NL_VALIDATE_TRAILING
    | bindings::netlink_validation_NL_VALIDATE_MAXTYPE
    | bindings::netlink_validation_NL_VALIDATE_UNSPEC
    | bindings::netlink_validation_NL_VALIDATE_STRICT_ATTRS
    | bindings::netlink_validation_NL_VALIDATE_NESTED;

/// The attributes in an attribute, in their order.
///
/// # Invariants
///
/// `rest` is aligned as an attribute's header is.
#[derive(Clone)]
pub(crate) struct NestedAttributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for NestedAttributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let (attribute, rest) = Attribute::split(self.rest)?;
        // INVARIANT: It begins a padded length behind what was aligned, or is empty.
        self.rest = rest;
        Some(attribute)
    }
}

/// The attributes in an attribute, by their numbers, validated.
///
/// # Invariants
///
/// What is not null in `table` is a whole attribute, in memory that is not changed for `'a`.
pub(crate) struct Parsed<'a, const N: usize> {
    table: [*mut bindings::nlattr; N],
    _lifetime: PhantomData<&'a [u8]>,
}

impl<'a, const N: usize> Parsed<'a, N> {
    /// Attribute `number`, if it is there.
    pub(crate) fn get(&self, number: u16) -> Option<Attribute<'a>> {
        let pointer = *self.table.get(usize::from(number))?;
        // SAFETY: By the type invariant.
        (!pointer.is_null()).then(|| unsafe { Attribute::from_raw(pointer) })
    }
}
