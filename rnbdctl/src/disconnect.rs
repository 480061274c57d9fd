// SPDX-License-Identifier: GPL-2.0
//! `disconnect`: detaches devices.

use anyhow::Result;
use nbd_netlink::Client;

use crate::cli::DisconnectArgs;
use crate::device::{self, Details, State};
use crate::driver;
use crate::failure::{Failure, Kind};
use crate::text;
use crate::users::{Opener, User};

pub fn run(args: &DisconnectArgs) -> Result<()> {
    let (_, client) = driver::privileged("disconnect")?;
    let mut first = None;
    for index in &args.devices {
        match disconnect(&client, *index, args.force) {
            Ok(told) => text::print(&format!("nbd{index}: {told}\n"))?,
            // The others are tried too.
            Err(error) if first.is_none() => first = Some(error),
            Err(error) => drop(crate::report(&error)),
        }
    }
    first.map_or(Ok(()), Err)
}

fn disconnect(client: &Client, index: u32, force: bool) -> Result<String> {
    let details = Details::read(device::one(index)?);
    if matches!(details.device.state, State::Idle) {
        return Ok("was not attached".to_owned());
    }
    let users: Vec<&User> = details.users.iter().filter(|user| user.is_exclusive()).collect();
    if !users.is_empty() && !force {
        let list = |texts: Vec<String>| texts.join("; ");
        let told = list(users.iter().map(ToString::to_string).collect());
        let release = list(users.iter().map(|user| user.release()).collect());
        return Err(Failure::new(Kind::Refused, format!("nbd{index} is in use: {told}"))
            .hint(format!("first: {release}"))
            .hint("or --force, and what is not written yet is lost")
            .into());
    }
    let answer = client.disconnect(index)?;
    driver::granted(&format!("cannot detach nbd{index}"), answer)?;
    let Ok(after) = device::one(index) else { return Ok("detached, and the device is gone".to_owned()) };
    match after.state {
        State::Idle => return Ok("detached".to_owned()),
        State::Gone => return Ok("detached, and the device goes".to_owned()),
        _ => {}
    }
    // nbd.ko keeps it as long as it is open.
    let openers = Details::read(after).openers;
    let told: Vec<String> = openers.iter().map(Opener::to_string).collect();
    Ok(match told.is_empty() {
        true => "told to detach; it is still in use".to_owned(),
        false => format!("told to detach; it is kept until it is closed by {}", told.join("; ")),
    })
}
