use super::*;

const BOUNDS: Bounds = Bounds {
    max_body_bytes: 1000,
    held_bytes: 2500,
};

fn over_budget(length: u64) -> Withheld {
    Withheld {
        unreadable: None,
        body: Body::OverBudget { length },
        held_bytes: 0,
    }
}

#[test]
fn what_is_withheld_is_taken_once_by_its_channel_and_tag() {
    let screen = Screen::new(BOUNDS);
    assert!(screen.take(1, 1).is_none());
    screen.withhold(1, 7, over_budget(5)).unwrap();
    screen.withhold(2, 7, over_budget(6)).unwrap();
    assert!(screen.take(1, 8).is_none());
    assert_eq!(
        screen.take(2, 7).unwrap().body,
        Body::OverBudget { length: 6 }
    );
    assert!(screen.take(2, 7).is_none());
    // lapin still hands out what a closed channel delivered; an opened one has delivered nothing.
    assert!(screen.take(1, 7).is_some());
    screen.withhold(1, 7, over_budget(5)).unwrap();
    screen.opened(2);
    screen.opened(1);
    assert!(screen.take(1, 7).is_none());
}

#[test]
fn bytes_are_held_until_they_are_released_and_one_message_is_always_let_through() {
    let screen = Screen::new(Bounds {
        max_body_bytes: u64::MAX,
        ..BOUNDS
    });
    assert_eq!(screen.admit(9000, 0, false), Admission::Pass(9000));
    assert_eq!(screen.admit(1, 0, false), Admission::OverBudget);
    screen.release(9000);
    assert_eq!(screen.held_bytes(), 0);
    assert_eq!(screen.admit(1500, 0, false), Admission::Pass(1500));
    assert_eq!(screen.admit(1000, 0, false), Admission::Pass(1000));
    assert_eq!(screen.admit(1, 0, false), Admission::OverBudget);
    screen.release(1500);
    assert_eq!(screen.admit(1, 0, true), Admission::OverBudget, "its order");
    assert_eq!(screen.admit(1, 0, false), Admission::Pass(1));
    screen.release(u64::MAX);
    assert_eq!(screen.held_bytes(), 0);
}

#[test]
fn a_body_over_its_bound_counts_for_nothing() {
    let screen = Screen::new(BOUNDS);
    assert_eq!(screen.admit(1000, 0, false), Admission::Pass(1000));
    assert_eq!(screen.admit(1001, 0, false), Admission::TooLarge(0));
    assert_eq!(screen.admit(u64::MAX, 0, false), Admission::TooLarge(0));
    assert_eq!(screen.held_bytes(), 1000);
    let open = Screen::open();
    assert_eq!(open.admit(u64::MAX, u64::MAX, false), Admission::Pass(0));
}

#[test]
fn headers_weigh_something_when_they_are_many() {
    assert_eq!(header_weight(600, 20), 0);
    assert!(header_weight(2000, 1000) > 90_000);
    assert!(header_weight(100_000, 1) >= 100_000);
    assert!(size_of::<AMQPValue>() as u64 <= VALUE_BYTES);
}

#[test]
fn all_entries_together_keep_a_bounded_number_of_bytes_and_digests_of_the_rest() {
    let screen = Screen::new(BOUNDS);
    let header = vec![7; 1024 * 1024];
    let digest: [u8; 32] = Sha256::digest(&header).into();
    for tag in 0..40 {
        let unreadable = Unreadable {
            properties: Raw::whole(&header),
            exchange: Vec::new(),
            routing_key: b"k".to_vec(),
            why: Refusal::TooDeep,
        };
        let withheld = Withheld {
            unreadable: Some(unreadable),
            body: Body::TooLarge {
                length: 99,
                sha256: [0; 32],
                beginning: vec![1; 99],
            },
            held_bytes: 0,
        };
        screen.withhold(1, tag, withheld).unwrap();
    }
    assert!(screen.table().bytes <= MAX_ENTRY_BYTES + 40 * 510);
    let mut bytes = 0;
    for tag in 0..40 {
        let withheld = screen.take(1, tag).unwrap();
        let raw = withheld.unreadable.unwrap().properties;
        assert_eq!(raw.length, header.len() as u64);
        let whole = raw.bytes.len() == header.len();
        assert_eq!(raw.sha256, (!whole).then_some(digest));
        bytes += raw.bytes.len();
    }
    assert!(bytes > MAX_ENTRY_BYTES / 2 && bytes <= MAX_ENTRY_BYTES);
    assert_eq!(screen.table().bytes, 0);
}

#[test]
fn a_broker_that_heeds_no_prefetch_is_found_out() {
    let screen = Screen::new(BOUNDS);
    for tag in 0..MAX_ENTRIES as u64 {
        screen.withhold(1, tag, over_budget(5)).unwrap();
    }
    assert!(screen.withhold(1, u64::MAX, over_budget(5)).is_err());
}

#[test]
fn a_version_is_read_however_it_is_written() {
    for (version, numbers) in [
        ("3.10.8", Some((3, 10, 8))),
        ("4.1.0-rc.1", Some((4, 1, 0))),
        ("3.13.7+1", Some((3, 13, 7))),
        ("4", Some((4, 0, 0))),
        ("4.2", Some((4, 2, 0))),
        ("", None),
        ("latest", None),
    ] {
        let server = Server {
            product: "RabbitMQ".into(),
            version: version.into(),
        };
        assert_eq!(server.numbers(), numbers, "{version}");
    }
}
