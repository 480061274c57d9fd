// SPDX-License-Identifier: GPL-2.0

//! What a test may take away from the driver's rules, to see that an exploration tells.

/// Each is true of the driver.
#[derive(Clone, Copy)]
pub struct Rules {
    /// A sender looks once more whether its link died while it sent.
    pub looks_again: bool,
    /// The death of a link that has been replaced is no loss.
    pub minds_epochs: bool,
    /// Requests are taken from the dead link alone, not from the one that has replaced it.
    pub releases_its_own: bool,
    /// The task that puts a link looks whether it died before.
    pub finds_stillborn: bool,
    /// The task that puts a link looks whether the generation has ended.
    pub sees_the_end: bool,
    /// Requests that wait for a connection are sent when there is one.
    pub kicks: bool,
    /// When the last connection died is noted before it is counted.
    pub notes_before_counting: bool,
    /// A sender that keeps a handover waiting costs the link, not the connection.
    pub cuts_off: bool,
    /// A handover forgets its own old link, not one of a later handover.
    pub forgets_its_own: bool,
    /// A request of which a part went out over an old link is sent anew.
    pub resends_parts: bool,
    /// The drain awaits the receivers of links that were just replaced.
    pub awaits_all_receivers: bool,
    /// A worker ends a generation once.
    pub ends_once: bool,
    /// A worker does not end a generation that is still being brought up.
    pub ends_after_start: bool,
    /// A submitter that cannot send at once has the connection's sender do it.
    pub commits: bool,
    /// The last submitter has what came before sent too, also if it goes elsewhere or fails.
    pub commits_what_came_before: bool,
    /// The drain gives back what still waits to be sent.
    pub gives_back_what_is_left: bool,
    /// A link's death is counted before its receiver can leave.
    pub counts_before_shutdown: bool,
    /// A generation that begins forgets that the last one was used before a close can see it.
    pub forgets_use_at_once: bool,
    /// The last close ends the generation that it has looked at.
    pub closes_in_one_step: bool,
    /// A disk is cleaned under its open lock, and not just when it seems not to be open.
    pub cleans_under_open_lock: bool,
    /// A disk is kept if it is clean, and not just if it seems not to be open at the start.
    pub keeps_what_is_clean: bool,
    /// A disk is not cleaned while a generation is being started.
    pub cleans_outside_of_starts: bool,
}

impl Rules {
    /// The driver's.
    pub const DRIVER: Self = Self {
        looks_again: true,
        minds_epochs: true,
        releases_its_own: true,
        finds_stillborn: true,
        sees_the_end: true,
        kicks: true,
        notes_before_counting: true,
        cuts_off: true,
        forgets_its_own: true,
        resends_parts: true,
        awaits_all_receivers: true,
        ends_once: true,
        ends_after_start: true,
        commits: true,
        commits_what_came_before: true,
        gives_back_what_is_left: true,
        counts_before_shutdown: true,
        forgets_use_at_once: true,
        closes_in_one_step: true,
        cleans_under_open_lock: true,
        keeps_what_is_clean: true,
        cleans_outside_of_starts: true,
    };
}
