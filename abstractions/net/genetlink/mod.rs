// SPDX-License-Identifier: GPL-2.0

//! Generic netlink families whose operations are answered in Rust.
//!
//! What is here beyond `kernel::net::netlink`, whose families have multicast groups alone:
//!
//! * [`Family`]: a static declaration with operations and attribute policies, and its
//!   [`Registration`];
//! * [`Operation`]: what a command does, and [`Info`]: the request that it is given;
//! * [`Policies`]: which attributes there are and what they hold;
//! * [`Attribute`]: what user space sent, with typed and checked access, nested too;
//! * [`Message`] and [`Nest`]: replies and notifications;
//! * [`ExtAck`]: the message that goes with an error.
//!
//! # Locks and waits
//!
//! An operation runs in the sender's task, and may sleep. The C side holds a lock of all generic
//! netlink for reading meanwhile (`cb_lock`); of a family with `parallel_ops: false` also the
//! mutex of all such families (`genl_mutex`). So an operation
//!
//! * must end in bounded time: while it runs no family can be registered or unregistered, and
//!   behind a task that waits for that, all generic netlink of the machine waits as well;
//! * must not wait for what registers or unregisters a family, such as the loading of a module, nor
//!   drop its own family's [`Registration`];
//! * of a family with `parallel_ops: true` runs beside others of the same family, and has to take
//!   its own locks.
//!
//! # Examples
//!
//! ```ignore
//! const ATTR_INDEX: u16 = 1;
//! static POLICIES: Policies<2> = Policies::new().with(ATTR_INDEX, Policy::U32);
//! static OPERATIONS: [SmallOps<Arc<Things>>; 1] = [SmallOps::of::<Get>()];
//! static FAMILY: Family<Arc<Things>> = Family::new(Declaration {
//!     module: this_module::<MyModule>(),
//!     name: c"things",
//!     version: 1,
//!     policies: POLICIES.as_slice(),
//!     groups: &[],
//!     operations: &OPERATIONS,
//!     netnsok: false,
//!     parallel_ops: true,
//!     resv_start_op: 0,
//! });
//!
//! struct Get;
//!
//! impl Operation<Arc<Things>> for Get {
//!     const COMMAND: u8 = 1;
//!
//!     fn doit(info: &Info<'_, Arc<Things>>) -> Result {
//!         let index = info.require(ATTR_INDEX)?.u32()?;
//!         let Some(thing) = info.data().get(index) else {
//!             return Err(info.ext_ack().err_msg(ENOENT, fmt!("there is no thing {index}")));
//!         };
//!         let mut reply = info.new_reply(nla_total_size(size_of::<u32>()))?;
//!         reply.put_u32(ATTR_INDEX, thing.index())?;
//!         info.reply(reply)
//!     }
//! }
//!
//! // In the module's init:
//! let registration = FAMILY.register(things)?;
//! ```
//!
//! C header: [`include/net/genetlink.h`](srctree/include/net/genetlink.h)

// The interface is complete; its users may not need all of it.
#![allow(dead_code, unused_imports)]

mod attribute;
mod ext_ack;
mod family;
mod info;
mod message;
mod policy;

pub(crate) use crate::abstractions::compat::net::netlink::MulticastGroup;
pub(crate) use attribute::{Attribute, NestedAttributes, Parsed};
pub(crate) use ext_ack::ExtAck;
pub(crate) use family::{
    Declaration, Family, Operation, Permission, Registration, SmallOps, Validation,
};
pub(crate) use info::Info;
pub(crate) use message::{nla_total_size, Message, Nest, PutAttributes};
pub(crate) use policy::{Policies, Policy};
