// SPDX-License-Identifier: GPL-2.0

//! Generic netlink families (`abstractions/net/genetlink`): registration, attributes from user
//! space, replies, the words that go with an error.

use super::{
    fixture::{Census, Counted},
    netlink_client::{Answer, Bytes, Client},
};
use crate::abstractions::{
    compat::{bindings, module::this_module},
    net::genetlink::{
        nla_total_size, Declaration, Family, Info, Operation, Policies, Policy, PutAttributes,
        SmallOps, Validation,
    },
};
use kernel::{
    error::code,
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
};

const BYTE: u16 = 1;
const SHORT: u16 = 2;
const WORD: u16 = 3;
const LONG: u16 = 4;
const TEXT: u16 = 5;
const LIST: u16 = 6;
const ITEM: u16 = 1;
const UNKNOWN: u16 = 9;

/// What the families are registered with.
struct Data {
    calls: Atomic<u32>,
    _counted: Counted,
}

type Shared = Arc<Data>;

fn data(census: &Census) -> Result<Shared> {
    let data = Data {
        calls: Atomic::new(0),
        _counted: census.make(),
    };
    Ok(Arc::new(data, GFP_KERNEL)?)
}

static POLICIES: Policies<10> = Policies::new()
    .with(BYTE, Policy::U8)
    .with(SHORT, Policy::U16)
    .with(WORD, Policy::U32)
    .with(LONG, Policy::U64)
    .with(TEXT, Policy::nul_string(16))
    .with(LIST, Policy::NESTED);

static OPERATIONS: [SmallOps<Shared>; 5] = [
    SmallOps::of::<Liberal>(),
    SmallOps::of::<Strict>(),
    SmallOps::of::<Sum>(),
    SmallOps::of::<Fill>(),
    SmallOps::of::<Interrupted>(),
];

const fn family() -> Family<Shared> {
    Family::new(Declaration {
        module: this_module::<crate::LocalModule>(),
        name: c"rnbd-kunit",
        version: 1,
        policies: POLICIES.as_slice(),
        groups: &[],
        operations: &OPERATIONS,
        netnsok: false,
        parallel_ops: true,
        resv_start_op: 2,
    })
}

static FAMILY: Family<Shared> = family();
/// Another one, of the same name.
static RIVAL: Family<Shared> = family();

/// The number that the kernel has given the family.
fn number() -> u16 {
    let raw = (&raw const FAMILY).cast::<bindings::genl_family>();
    // SAFETY: The C side's family is at the beginning of ours.
    unsafe { (*raw).id as u16 }
}

/// Sends back all that it gets.
fn echo(info: &Info<'_, Shared>) -> Result {
    info.data().calls.fetch_add(1, Full);
    let mut reply = info.new_reply(1024)?;
    if let Some(byte) = info.get(BYTE) {
        reply.put_u8(BYTE, byte.u8()?)?;
    }
    if let Some(short) = info.get(SHORT) {
        reply.put_u16(SHORT, short.u16()?)?;
    }
    reply.put_u32(WORD, info.require(WORD)?.u32()?)?;
    if let Some(long) = info.get(LONG) {
        reply.put_u64(LONG, long.u64()?)?;
    }
    if let Some(text) = info.get(TEXT) {
        reply.put_bytes(TEXT, text.string())?;
    }
    info.reply(reply)
}

struct Liberal;
struct Strict;
struct Sum;
struct Fill;
struct Interrupted;

impl Operation<Shared> for Liberal {
    const COMMAND: u8 = 1;
    const VALIDATION: Validation = Validation::Liberal;

    fn doit(info: &Info<'_, Shared>) -> Result {
        echo(info)
    }
}

impl Operation<Shared> for Strict {
    const COMMAND: u8 = 2;

    fn doit(info: &Info<'_, Shared>) -> Result {
        echo(info)
    }
}

/// Adds up a list's items, in a way that depends on their order.
impl Operation<Shared> for Sum {
    const COMMAND: u8 = 3;

    fn doit(info: &Info<'_, Shared>) -> Result {
        let mut sum = 0_u32;
        for item in info.require(LIST)?.nested() {
            if item.number() != ITEM {
                info.ext_ack().set_bad_attr(item);
                return Err(info
                    .ext_ack()
                    .err_msg(EINVAL, fmt!("{} is no item", item.number())));
            }
            sum = sum.wrapping_mul(10).wrapping_add(item.u32()?);
        }
        let mut reply = info.new_reply(nla_total_size(4))?;
        reply.put_u32(WORD, sum)?;
        info.reply(reply)
    }
}

/// Puts more into a reply than fits.
impl Operation<Shared> for Fill {
    const COMMAND: u8 = 4;

    fn doit(info: &Info<'_, Shared>) -> Result {
        let mut reply = info.new_reply(64)?;
        let mut fitted = 0_u32;
        while reply.put_u64(LONG, 7).is_ok() {
            fitted += 1;
            if fitted > 4096 {
                return Err(EOVERFLOW);
            }
        }
        // What is begun and not ended leaves nothing, and neither does what does not fit.
        if let Ok(mut nest) = reply.nest(LIST) {
            if nest.put_u64(ITEM, 1).is_ok() {
                return Err(EOVERFLOW);
            }
        }
        if reply.put_u64(LONG, 7).is_ok() {
            return Err(EOVERFLOW);
        }
        info.reply(reply)
    }
}

/// Fails as if a signal had come.
impl Operation<Shared> for Interrupted {
    const COMMAND: u8 = 5;

    fn doit(info: &Info<'_, Shared>) -> Result {
        Err(info.ext_ack().err_msg(EINTR, fmt!("a signal came")))
    }
}

/// Asks the family.
fn ask(command: u8, attributes: &Bytes) -> Result<Answer> {
    Client::new()?.ask(number(), command, attributes)
}

/// A request with only the attribute that must be there.
fn word() -> Result<Bytes> {
    Bytes::new().attribute(WORD, &77_u32.to_ne_bytes())
}

fn errno(error: Error) -> i32 {
    error.to_errno()
}

#[kunit_tests(rnbd_genetlink)]
mod tests {
    use super::*;

    #[test]
    fn data_is_dropped_with_the_registration() -> Result {
        let census = Census::new()?;
        for _ in 0..3 {
            let registration = FAMILY.register(data(&census)?)?;
            // It is registered already: what was for the second is given up.
            assert!(FAMILY.register(data(&census)?).map(|_| ()) == Err(EBUSY));
            assert_eq!(census.alive(), 1);
            drop(registration);
            assert_eq!(census.alive(), 0);
        }
        Ok(())
    }

    #[test]
    fn a_name_is_taken_once() -> Result {
        let census = Census::new()?;
        let registration = FAMILY.register(data(&census)?)?;
        assert!(RIVAL.register(data(&census)?).map(|_| ()) == Err(code::EEXIST));
        assert_eq!(census.alive(), 1);
        drop(registration);
        drop(RIVAL.register(data(&census)?)?);
        assert_eq!(census.alive(), 0);
        Ok(())
    }

    #[test]
    fn operations_share_the_data_and_leave_it() -> Result {
        let census = Census::new()?;
        let shared = data(&census)?;
        let registration = FAMILY.register(shared.clone())?;
        for _ in 0..5 {
            assert_eq!(ask(1, &word()?)?.error, 0);
        }
        assert_eq!(shared.calls.load(Relaxed), 5);
        drop(registration);
        // No reference is left.
        assert!(Arc::into_unique_or_drop(shared).is_some());
        // And there is no answer any more.
        assert_eq!(ask(1, &word()?)?.error, errno(code::ENOENT));
        Ok(())
    }

    #[test]
    fn numbers_and_strings_arrive_and_return() -> Result {
        let census = Census::new()?;
        let _registration = FAMILY.register(data(&census)?)?;
        let sent = Bytes::new()
            .attribute(BYTE, &[0xa5])?
            .attribute(SHORT, &0xbeef_u16.to_ne_bytes())?
            .attribute(WORD, &0xdead_beef_u32.to_ne_bytes())?
            .attribute(LONG, &0x0123_4567_89ab_cdef_u64.to_ne_bytes())?
            .attribute(TEXT, b"backend")?;
        let terminated = Bytes::new()
            .attribute(BYTE, &[0xa5])?
            .attribute(SHORT, &0xbeef_u16.to_ne_bytes())?
            .attribute(WORD, &0xdead_beef_u32.to_ne_bytes())?
            .attribute(LONG, &0x0123_4567_89ab_cdef_u64.to_ne_bytes())?
            .attribute(TEXT, b"backend\0ignored")?;
        for (command, asked) in [(1, &terminated), (2, &terminated)] {
            let answer = ask(command, asked)?;
            assert_eq!(answer.error, 0);
            assert!(answer.reply.as_deref() == Some(&sent.0[..]));
        }
        Ok(())
    }

    #[test]
    fn what_is_too_short_is_refused() -> Result {
        let census = Census::new()?;
        let shared = data(&census)?;
        let _registration = FAMILY.register(shared.clone())?;
        for number in [BYTE, SHORT, WORD, LONG] {
            let short = Bytes::new().attribute(number, &[])?;
            assert_eq!(ask(1, &short)?.error, errno(ERANGE));
            assert!(ask(2, &short)?.error < 0);
        }
        // A string that must end in NUL and does not.
        assert!(ask(1, &word()?.attribute(TEXT, b"endless")?)?.error < 0);
        assert!(ask(1, &word()?.attribute(TEXT, b"far too long a name\0")?)?.error < 0);
        assert_eq!(shared.calls.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn what_a_signal_interrupts_is_answered() -> Result {
        let census = Census::new()?;
        let _registration = FAMILY.register(data(&census)?)?;
        let answer = ask(5, &word()?)?;
        assert_eq!(answer.error, errno(EBUSY));
        assert!(answer.says("a signal came"));
        Ok(())
    }

    #[test]
    fn what_is_missing_is_named() -> Result {
        let census = Census::new()?;
        let _registration = FAMILY.register(data(&census)?)?;
        let answer = ask(1, &Bytes::new().attribute(BYTE, &[1])?)?;
        assert_eq!(answer.error, errno(EINVAL));
        assert!(answer.reply.is_none());
        Ok(())
    }

    #[test]
    fn unknown_attributes_are_passed_over_or_refused() -> Result {
        let census = Census::new()?;
        let _registration = FAMILY.register(data(&census)?)?;
        let unknown = word()?.attribute(UNKNOWN, &[1, 2, 3])?;
        assert_eq!(ask(1, &unknown)?.error, 0);
        assert_eq!(ask(2, &unknown)?.error, errno(EINVAL));
        let far = word()?.attribute(0x3fff, &[])?;
        assert_eq!(ask(1, &far)?.error, 0);
        assert_eq!(ask(2, &far)?.error, errno(EINVAL));
        Ok(())
    }

    #[test]
    fn a_list_is_read_in_its_order() -> Result {
        let census = Census::new()?;
        let _registration = FAMILY.register(data(&census)?)?;
        let mut items = Bytes::new();
        for digit in [4_u32, 7, 1, 1] {
            items = items.attribute(ITEM, &digit.to_ne_bytes())?;
        }
        // A header that promises more than there is ends it.
        items.0.extend_from_slice(&[200, 0, 1, 0], GFP_KERNEL)?;
        let answer = ask(3, &Bytes::new().nest(LIST, items)?)?;
        assert_eq!(answer.error, 0);
        let want = Bytes::new().attribute(WORD, &4711_u32.to_ne_bytes())?;
        assert!(answer.reply.as_deref() == Some(&want.0[..]));
        let nothing = ask(3, &Bytes::new().nest(LIST, Bytes::new())?)?;
        let want = Bytes::new().attribute(WORD, &[0; 4])?;
        assert!(nothing.error == 0 && nothing.reply.as_deref() == Some(&want.0[..]));
        Ok(())
    }

    #[test]
    fn why_something_is_refused_is_said() -> Result {
        let census = Census::new()?;
        let _registration = FAMILY.register(data(&census)?)?;
        let items = Bytes::new()
            .attribute(ITEM, &[0; 4])?
            .attribute(5, &[0; 4])?;
        let answer = ask(3, &Bytes::new().nest(LIST, items)?)?;
        assert_eq!(answer.error, errno(EINVAL));
        assert!(answer.says("5 is no item"));
        Ok(())
    }

    #[test]
    fn a_reply_holds_what_fits_and_nothing_else() -> Result {
        let census = Census::new()?;
        let _registration = FAMILY.register(data(&census)?)?;
        let answer = ask(4, &Bytes::new())?;
        assert_eq!(answer.error, 0);
        let reply = answer.reply.ok_or(ENOENT)?;
        let one = Bytes::new().attribute(LONG, &7_u64.to_ne_bytes())?;
        assert!(reply.len() >= 60 && reply.chunks(12).all(|part| *part == one.0[..]));
        Ok(())
    }
}
