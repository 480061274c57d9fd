// SPDX-License-Identifier: GPL-2.0

//! How a generation ends.

use super::{Last, Plain};
use rnbd_protocol::setup::EndReason;

impl Plain {
    /// Gives the sockets to dispose of, and those of the attachment that drains.
    pub fn retire(&mut self, reason: EndReason) -> (Vec<u32>, Vec<u32>) {
        match self.phase {
            "setup" => return (self.let_go(), vec![]),
            "running" => {
                self.phase = "draining";
                self.reason = Some(reason);
            }
            _ => {}
        }
        (vec![], self.sockets.clone())
    }

    /// The owner of a generation that has ended may clear once more without hitting the next living
    /// owner.
    pub fn clear(&mut self, who: usize) -> (Vec<u32>, Vec<u32>) {
        let others = self.owner.is_some_and(|o| o != who && self.people[o].alive);
        if self.clear_due == Some(who) {
            self.clear_due = None;
            if others {
                return (vec![], vec![]);
            }
        }
        if others {
            if let Some(draft) = self.drafts.iter_mut().find(|draft| draft.0 == who) {
                if std::mem::replace(&mut draft.2, false) {
                    return (vec![], vec![]);
                }
            }
        }
        if self.phase == "setup" && self.owner == Some(who) {
            self.generation += 1;
            return (std::mem::take(&mut self.sockets), vec![]);
        }
        if self.phase == "setup" && others && self.sockets.is_empty() {
            return (vec![], vec![]);
        }
        self.retire(EndReason::Cleared)
    }

    pub fn abandon(&mut self) -> Vec<u32> {
        match self.phase {
            "setup" => self.let_go(),
            _ => vec![],
        }
    }

    pub fn drained(&mut self) -> Option<EndReason> {
        if self.phase != "draining" {
            return None;
        }
        let lost = [EndReason::ConnectionsLost, EndReason::TimedOut];
        let (size, block_size, ..) = self.settings;
        let before = self.last;
        self.last = self.owner.map(|owner| Last {
            owner,
            size,
            block_size,
            lost: self.reason.is_some_and(|reason| lost.contains(&reason))
                // What did not come up may be tried again.
                || self.reason == Some(EndReason::StartFailed)
                    && before.is_some_and(|last| {
                        last.lost
                            && (last.owner, last.size, last.block_size) == (owner, size, block_size)
                    }),
        });
        self.leave_disk();
        self.clear_due = self.owner;
        let goes = self.destroy;
        self.let_go();
        if goes {
            self.phase = "gone";
        }
        self.reason.take()
    }
}
