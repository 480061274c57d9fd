// SPDX-License-Identifier: GPL-2.0
//! What the kernel's controller says of the family.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_generic::constants::GENL_ID_CTRL;
pub use netlink_packet_generic::ctrl::nlas::NlaType;
use netlink_packet_generic::ctrl::nlas::{
    GenlCtrlAttrs, McastGrpAttrs, NlPolicyTypeAttrs, OpAttrs, OppolicyIndexAttr,
};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use nix::errno::Errno;

use super::talk::{bound_socket, exchange};

/// Its name.
pub const NAME: &str = "nbd";
/// The multicast group that is told of dead connections.
pub const GROUP: &str = "nbd_mc_group";

/// A command that the family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    /// Its number.
    pub command: u32,
    /// `GENL_CMD_CAP_*` and its like.
    pub flags: u32,
}

impl Operation {
    /// It can be done.
    pub const DO: u32 = 2;
    /// Its attributes have a policy.
    pub const HAS_POLICY: u32 = 8;
}

/// The family, as it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// The number that messages to it bear.
    pub id: u16,
    /// Its version.
    pub version: u32,
    /// Bytes of its own header, behind the generic one.
    pub header_size: u32,
    /// The highest attribute.
    pub max_attribute: u32,
    /// What can be asked of it.
    pub operations: Vec<Operation>,
    /// Names and numbers.
    pub groups: Vec<(String, u32)>,
}

impl Family {
    /// Asks for it; None if there is none.
    pub fn find() -> Result<Option<Family>> {
        let request =
            GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(NAME.to_owned())] };
        let replies = match exchange(&bound_socket()?, GENL_ID_CTRL, 0, request)? {
            Ok(replies) => replies,
            Err(refusal) if refusal.errno == Errno::ENOENT => return Ok(None),
            Err(refusal) => bail!("looking for the family: {refusal:?}"),
        };
        let [reply] = &replies[..] else { bail!("the controller says {replies:?}") };
        let mut found = Family {
            id: 0,
            version: 0,
            header_size: 0,
            max_attribute: 0,
            operations: Vec::new(),
            groups: Vec::new(),
        };
        for attribute in &reply.nlas {
            match attribute {
                GenlCtrlAttrs::FamilyId(id) => found.id = *id,
                GenlCtrlAttrs::FamilyName(name) => ensure!(name == NAME, "the controller found {name}"),
                GenlCtrlAttrs::Version(version) => found.version = *version,
                GenlCtrlAttrs::HdrSize(size) => found.header_size = *size,
                GenlCtrlAttrs::MaxAttr(number) => found.max_attribute = *number,
                GenlCtrlAttrs::Ops(list) => {
                    found.operations = list.iter().map(|one| operation(one)).collect::<Result<_>>()?;
                }
                GenlCtrlAttrs::McastGroups(list) => {
                    found.groups = list.iter().map(|one| group(one)).collect::<Result<_>>()?;
                }
                other => bail!("the controller says {other:?}"),
            }
        }
        ensure!(found.id != 0, "the controller found a family without a number");
        Ok(Some(found))
    }

    /// The types of the attributes that a command can have, by their numbers.
    pub fn policy(&self, command: u8) -> Result<BTreeMap<u16, NlaType>> {
        let request = GenlCtrl {
            cmd: GenlCtrlCmd::GetPolicy,
            nlas: vec![GenlCtrlAttrs::FamilyId(self.id), GenlCtrlAttrs::Op(command.into())],
        };
        let replies = exchange(&bound_socket()?, GENL_ID_CTRL, NLM_F_DUMP, request)?
            .map_err(|refusal| anyhow!("asking for the policy: {refusal:?}"))?;
        let mut at_top = None;
        let mut types = BTreeMap::new();
        for attribute in replies.iter().flat_map(|reply| &reply.nlas) {
            match attribute {
                GenlCtrlAttrs::OpPolicy(policy) if policy.cmd == command => {
                    for index in &policy.policy_idx {
                        if let OppolicyIndexAttr::Do(index) = index {
                            at_top = Some(*index);
                        }
                    }
                }
                GenlCtrlAttrs::Policy(policy) => {
                    let at_top = at_top.context("a policy before the word which it is")?;
                    if u32::from(policy.index) != at_top {
                        continue;
                    }
                    let kind = policy.attr_policy.policies.iter().find_map(|one| match one {
                        NlPolicyTypeAttrs::Type(kind) => Some(*kind),
                        _ => None,
                    });
                    types.insert(policy.attr_policy.index, kind.context("an attribute without a type")?);
                }
                _ => {}
            }
        }
        Ok(types)
    }
}

fn operation(attributes: &[OpAttrs]) -> Result<Operation> {
    let mut found = Operation { command: 0, flags: 0 };
    for attribute in attributes {
        match attribute {
            OpAttrs::Id(id) => found.command = *id,
            OpAttrs::Flags(flags) => found.flags = *flags,
        }
    }
    ensure!(found.command != 0, "the controller knows an operation without a command");
    Ok(found)
}

fn group(attributes: &[McastGrpAttrs]) -> Result<(String, u32)> {
    let name = attributes.iter().find_map(|one| match one {
        McastGrpAttrs::Name(name) => Some(name.clone()),
        McastGrpAttrs::Id(_) => None,
    });
    let id = attributes.iter().find_map(|one| match one {
        McastGrpAttrs::Id(id) => Some(*id),
        McastGrpAttrs::Name(_) => None,
    });
    Ok((name.context("a group without a name")?, id.context("a group without a number")?))
}
