// SPDX-License-Identifier: GPL-2.0

//! The module's own netlink family: what requests say, and what is refused of it.

use super::netlink_client::{Answer, Bytes, Client};
use crate::protocol::netlink::{attribute, command, device, socket, FAMILY_NAME};
use kernel::prelude::*;

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`: numbers of
/// the ABI.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const NAME: u16 = 2;

/// An attribute's payload in what came back.
fn find(attributes: &[u8], number: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    while let Some(head) = rest.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        if kind == number {
            return rest.get(4..len);
        }
        rest = rest.get(len.checked_next_multiple_of(4)?.max(4)..)?;
    }
    None
}

/// The number that the kernel has given the family.
fn number() -> Result<u16> {
    let name = Bytes::new().attribute(NAME, FAMILY_NAME.to_bytes_with_nul())?;
    let answer = Client::new()?.ask(CONTROLLER, GET_FAMILY, &name)?;
    let reply = answer.reply.ok_or(ENOENT)?;
    let id = find(&reply, FAMILY_ID).and_then(|payload| payload.first_chunk());
    Ok(u16::from_ne_bytes(*id.ok_or(EIO)?))
}

fn ask(command: u8, attributes: &Bytes) -> Result<Answer> {
    Client::new()?.ask(number()?, command, attributes)
}

fn index() -> Result<Bytes> {
    Bytes::new().attribute(attribute::INDEX, &0_u32.to_ne_bytes())
}

fn long(bytes: Bytes, number: u16, value: u64) -> Result<Bytes> {
    bytes.attribute(number, &value.to_ne_bytes())
}

/// A list of one socket, by its file descriptor.
fn sockets(bytes: Bytes, fd: u32) -> Result<Bytes> {
    let fd = Bytes::new().attribute(socket::FD, &fd.to_ne_bytes())?;
    let list = Bytes::new().nest(socket::ITEM, fd)?;
    bytes.nest(attribute::SOCKETS, list)
}

/// All that a CONNECT needs, but for a socket that there is.
fn whole() -> Result<Bytes> {
    sockets(long(index()?, attribute::SIZE_BYTES, 1 << 20)?, 4000)
}

/// Whether it is refused with EINVAL, and these words.
fn refused(answer: &Answer, words: &str) -> bool {
    answer.error == EINVAL.to_errno() && answer.reply.is_none() && answer.says(words)
}

/// Whether STATUS has nbd0 as a device that is not attached.
fn is_free() -> Result<bool> {
    let item = Bytes::new()
        .attribute(device::INDEX, &0_u32.to_ne_bytes())?
        .attribute(device::CONNECTED, &[0])?;
    let answer = ask(command::STATUS, &index()?)?;
    let reply = answer.reply.ok_or(EIO)?;
    let list = find(&reply, attribute::DEVICE_LIST).ok_or(EIO)?;
    Ok(find(list, device::ITEM) == Some(&item.0[..]))
}

#[kunit_tests(rnbd_netlink)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() -> Result {
        let answer = ask(
            command::CONNECT,
            &long(index()?, attribute::SIZE_BYTES, 4096)?,
        )?;
        assert!(refused(&answer, "a socket (NBD_ATTR_SOCKETS) is missing"));
        let answer = ask(command::CONNECT, &sockets(index()?, 4000)?)?;
        assert!(refused(
            &answer,
            "the size (NBD_ATTR_SIZE_BYTES) is missing"
        ));
        let answer = ask(command::RECONFIGURE, &Bytes::new())?;
        assert!(refused(&answer, "the device (NBD_ATTR_INDEX) is missing"));
        assert!(is_free()?);
        Ok(())
    }

    #[test]
    fn numbers_that_are_too_short_are_refused() -> Result {
        for number in [
            attribute::SIZE_BYTES,
            attribute::BLOCK_SIZE_BYTES,
            attribute::TIMEOUT,
            attribute::SERVER_FLAGS,
            attribute::CLIENT_FLAGS,
            attribute::DEAD_CONN_TIMEOUT,
        ] {
            let short = whole()?.attribute(number, &[0; 4])?;
            assert!(ask(command::CONNECT, &short)?.error == ERANGE.to_errno());
        }
        let short = Bytes::new().attribute(attribute::INDEX, &[0; 2])?;
        assert!(ask(command::STATUS, &short)?.error == ERANGE.to_errno());
        assert!(is_free()?);
        Ok(())
    }

    #[test]
    fn times_that_cannot_be_counted_are_refused() -> Result {
        for number in [attribute::TIMEOUT, attribute::DEAD_CONN_TIMEOUT] {
            for seconds in [u64::MAX, 1 << 32, u64::from(u32::MAX)] {
                let answer = ask(command::CONNECT, &long(whole()?, number, seconds)?)?;
                assert!(refused(&answer, "must be at most"));
            }
        }
        assert!(is_free()?);
        Ok(())
    }

    #[test]
    fn sizes_that_no_disk_can_have_are_refused() -> Result {
        for (number, value) in [
            (attribute::SIZE_BYTES, u64::MAX),
            (attribute::SIZE_BYTES, 1 << 63),
            (attribute::BLOCK_SIZE_BYTES, 511),
            (attribute::BLOCK_SIZE_BYTES, 3 << 10),
            (attribute::BLOCK_SIZE_BYTES, 1 << 40),
        ] {
            let answer = ask(command::CONNECT, &long(whole()?, number, value)?)?;
            assert_eq!(answer.error, EINVAL.to_errno());
        }
        assert!(is_free()?);
        Ok(())
    }

    #[test]
    fn lists_of_sockets_are_read_item_by_item() -> Result {
        let start = || long(index()?, attribute::SIZE_BYTES, 1 << 20);
        // Something else than an item.
        let list = Bytes::new().attribute(socket::ITEM + 1, &[0; 4])?;
        let answer = ask(command::CONNECT, &start()?.nest(attribute::SOCKETS, list)?)?;
        assert!(refused(&answer, "NBD_SOCK_ITEM"));
        // A number that is none of a file.
        let answer = ask(command::CONNECT, &sockets(start()?, u32::MAX)?)?;
        assert!(refused(&answer, "is no file descriptor"));
        // And one of a file that there is not.
        assert!(ask(command::CONNECT, &whole()?)?.error < 0);
        // An item with a descriptor that is too short, and one that says more than it holds.
        let short = Bytes::new().attribute(socket::FD, &[0; 2])?;
        let list = Bytes::new().nest(socket::ITEM, short)?;
        let answer = ask(command::CONNECT, &start()?.nest(attribute::SOCKETS, list)?)?;
        assert_eq!(answer.error, EINVAL.to_errno());
        let list = Bytes::new().attribute(socket::ITEM, &[9, 0, 1, 0])?;
        let answer = ask(command::CONNECT, &start()?.nest(attribute::SOCKETS, list)?)?;
        assert!(answer.error < 0);
        assert!(is_free()?);
        Ok(())
    }

    #[test]
    fn a_device_that_there_cannot_be_is_refused() -> Result {
        let far = Bytes::new().attribute(attribute::INDEX, &(u32::MAX - 1).to_ne_bytes())?;
        let answer = ask(command::CONNECT, &far)?;
        assert!(refused(&answer, "there can be no nbd"));
        let answer = ask(command::RECONFIGURE, &far)?;
        assert!(refused(&answer, "there is no nbd"));
        // STATUS has a list without it.
        let reply = ask(command::STATUS, &far)?.reply.ok_or(EIO)?;
        assert!(find(&reply, attribute::DEVICE_LIST).is_some_and(<[u8]>::is_empty));
        Ok(())
    }
}
