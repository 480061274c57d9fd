// SPDX-License-Identifier: GPL-2.0

//! Who sees to the end of a generation.

use rnbd_protocol::{
    end::{ComeBack, End},
    setup::Interface,
};

fn with_receiver(interface: Interface) -> End {
    let mut end = End::new(interface);
    end.receiver_comes();
    end
}

#[test]
fn a_task_that_is_there_sees_to_it_itself() {
    for interface in [Interface::Ioctl, Interface::Netlink] {
        let mut end = with_receiver(interface);
        assert!(!end.is_due());
        end.ask();
        assert!(end.is_due());
        assert!(!end.take_if_due() && !end.take());
    }
}

#[test]
fn by_ioctl_the_last_connection_is_the_end() {
    let mut end = with_receiver(Interface::Ioctl);
    end.receiver_comes();
    end.leave();
    end.receiver_goes();
    assert!(!end.is_due() && !end.take_if_due());
    end.receiver_goes();
    assert!(end.is_due() && end.is_deserted());
    assert!(end.take_if_due());
    assert!(!end.take_if_due(), "it is ended twice");
}

#[test]
fn by_netlink_it_outlives_its_connections() {
    let mut end = with_receiver(Interface::Netlink);
    end.leave();
    end.receiver_goes();
    assert!(!end.is_due() && !end.take_if_due());
    end.ask();
    assert!(end.take_if_due());
    assert!(!end.take_if_due(), "it is ended twice");
}

#[test]
fn who_comes_back_keeps_it_and_may_leave_again() {
    let mut end = with_receiver(Interface::Ioctl);
    assert_eq!(end.come_back(), ComeBack::Occupied);
    for _ in 0..2 {
        end.leave();
        assert!(end.is_away());
        assert_eq!(end.come_back(), ComeBack::Done);
        assert_eq!(end.come_back(), ComeBack::Occupied);
    }
    end.ask();
    assert!(!end.take_if_due());
}

#[test]
fn who_comes_back_late_leaves_it_to_the_worker() {
    let mut end = with_receiver(Interface::Ioctl);
    end.leave();
    assert!(end.take(), "the task does other things");
    assert_eq!(end.come_back(), ComeBack::TooLate);
    end.ask();
    assert!(!end.take_if_due(), "it is ended twice");
}
