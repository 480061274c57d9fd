// SPDX-License-Identifier: GPL-2.0

//! Files in a disk's sysfs directory.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::{Disk, Operations};
use crate::bindings as extra;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi,
    fmt::Write as _,
    page::PAGE_SIZE,
    prelude::*,
    str::{as_char_ptr_in_const_context, Formatter},
    sync::aref::ARef,
};

/// A read-only sysfs attribute of a disk of `T`.
pub(crate) trait Attribute<T: Operations>: 'static {
    /// The file's name.
    const NAME: &'static CStr;

    /// Writes the value, without a newline. May sleep, but must not wait for the file's removal.
    fn show(disk: &Disk<T>, to: &mut Formatter<'_>) -> Result;
}

/// An [`Attribute`], as the C side knows it.
#[repr(transparent)]
pub(crate) struct DeviceAttribute<T: Operations>(
    bindings::device_attribute,
    PhantomData<fn() -> T>,
);

// SAFETY: The C side reads it, and does not change it.
unsafe impl<T: Operations> Sync for DeviceAttribute<T> {}

impl<T: Operations> DeviceAttribute<T> {
    /// The attribute `A`, readable by all.
    // With lock debugging there are more fields.
    #[allow(clippy::needless_update)]
    pub(crate) const fn of<A: Attribute<T>>() -> Self {
        Self(
            bindings::device_attribute {
                attr: bindings::attribute {
                    name: as_char_ptr_in_const_context(A::NAME),
                    mode: 0o444,
                    ..pin_init::zeroed()
                },
                __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
                    show: Some(show::<T, A>),
                },
                ..pin_init::zeroed()
            },
            PhantomData,
        )
    }
}

/// # Safety
///
/// Only for sysfs to call, for a file in the directory of a disk of `T`.
unsafe extern "C" fn show<T: Operations, A: Attribute<T>>(
    dev: *mut bindings::device,
    _attr: *mut bindings::device_attribute,
    buf: *mut ffi::c_char,
) -> isize {
    // SAFETY: By the safety requirement; the disk is alive as long as the file is read.
    let disk = unsafe { Disk::<T>::from_raw(extra::rnbd_helper_dev_to_disk(dev)) };
    // SAFETY: sysfs passes a page to write to.
    let page = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE) };
    from_result(|| {
        let mut to = Formatter::new(page);
        A::show(disk, &mut to)?;
        to.write_str("\n").map_err(|_| EOVERFLOW)?;
        Ok(isize::try_from(to.bytes_written())?)
    })
}

/// An [`Attribute`]'s file, in sysfs until this is dropped. Dropping waits for readers.
///
/// # Invariants
///
/// The file was created, and is removed by this value alone.
pub(crate) struct AttributeFile<T: Operations, A: Attribute<T>> {
    disk: ARef<Disk<T>>,
    _attribute: PhantomData<fn() -> A>,
}

impl<T: Operations, A: Attribute<T>> AttributeFile<T, A> {
    const ATTRIBUTE: DeviceAttribute<T> = DeviceAttribute::of::<A>();

    /// Creates the file. Sleeps.
    pub(crate) fn create(disk: &Disk<T>) -> Result<Self> {
        // SAFETY: The disk has its device; the attribute lives for ever.
        to_result(unsafe {
            bindings::device_create_file(
                extra::rnbd_helper_disk_to_dev(disk.as_raw()),
                &Self::ATTRIBUTE.0,
            )
        })?;
        Ok(Self {
            disk: disk.get(),
            _attribute: PhantomData,
        })
    }
}

impl<T: Operations, A: Attribute<T>> Drop for AttributeFile<T, A> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe {
            bindings::device_remove_file(
                extra::rnbd_helper_disk_to_dev(self.disk.as_raw()),
                &Self::ATTRIBUTE.0,
            )
        };
    }
}

/// A directory of attributes, for [`super::GenDiskBuilder`] to put into the disk's.
pub(crate) struct AttributeGroup<T: Operations> {
    /// The directory's name.
    pub(crate) name: &'static CStr,
    /// What is in it.
    pub(crate) attributes: &'static [DeviceAttribute<T>],
}

/// An [`AttributeGroup`], as the C side wants it.
///
/// # Invariants
///
/// `list` is a null-terminated list of `group`, whose attributes are the null-terminated
/// `attributes`.
pub(super) struct RawGroups {
    _attributes: KVec<*const bindings::attribute>,
    _group: KBox<bindings::attribute_group>,
    list: KBox<[*const bindings::attribute_group; 2]>,
}

impl RawGroups {
    pub(super) fn new<T: Operations>(from: &AttributeGroup<T>) -> Result<Self> {
        let mut attributes = KVec::new();
        for attribute in from.attributes {
            attributes.push(&raw const attribute.0.attr, GFP_KERNEL)?;
        }
        attributes.push(core::ptr::null(), GFP_KERNEL)?;
        let mut group: bindings::attribute_group = pin_init::zeroed();
        group.name = from.name.as_char_ptr();
        group.__bindgen_anon_2.attrs_const = attributes.as_ptr();
        let group = KBox::new(group, GFP_KERNEL)?;
        let list = KBox::new([&raw const *group, core::ptr::null()], GFP_KERNEL)?;
        // INVARIANT: The vector's and the boxes' memory stays in place when they are moved.
        Ok(Self {
            _attributes: attributes,
            _group: group,
            list,
        })
    }

    /// The list, valid as long as `self` is.
    #[inline]
    pub(super) fn as_ptr(&self) -> *mut *const bindings::attribute_group {
        self.list.as_ptr().cast_mut()
    }
}
