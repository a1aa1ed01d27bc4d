use amq_protocol::frame::{AMQPFrame, parse_frame};
use amq_protocol::protocol::AMQPClass;
use lapin::BasicProperties;
use proptest::collection::vec;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::message::encode_properties;

use super::super::screen::{BEGINNING_BYTES, Body, Bounds};
use super::super::walk::tests::{damaged, encoded};
use super::*;

const BOUNDS: Bounds = Bounds {
    max_body_bytes: 100_000,
    held_bytes: 300_000,
};

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend(channel.to_be_bytes());
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame.push(END);
    frame
}

fn method(channel: u16, class: u16, id: u16, arguments: &[u8]) -> Vec<u8> {
    let payload = [&class.to_be_bytes(), &id.to_be_bytes(), arguments].concat();
    frame(METHOD, channel, &payload)
}

fn deliver(channel: u16, tag: u64, routing_key: &[u8]) -> Vec<u8> {
    let mut arguments = b"\x01c".to_vec();
    arguments.extend(tag.to_be_bytes());
    arguments.extend([0, 0, u8::try_from(routing_key.len()).unwrap()]);
    arguments.extend(routing_key);
    method(channel, 60, 60, &arguments)
}

fn header(channel: u16, body_bytes: u64, properties: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0];
    payload.extend(body_bytes.to_be_bytes());
    payload.extend(properties);
    frame(HEADER, channel, &payload)
}

fn body(channel: u16, bytes: &[u8]) -> Vec<u8> {
    let frames = bytes
        .chunks(100_000)
        .map(|chunk| frame(BODY, channel, chunk));
    frames.collect::<Vec<_>>().concat()
}

/// A whole delivery.
fn message(channel: u16, tag: u64, properties: &[u8], bytes: &[u8]) -> Vec<u8> {
    [
        deliver(channel, tag, b"k"),
        header(channel, bytes.len() as u64, properties),
        body(channel, bytes),
    ]
    .concat()
}

fn named(id: &str) -> Vec<u8> {
    encode_properties(&BasicProperties::default().with_message_id(id.into()))
}

fn heartbeat() -> Vec<u8> {
    frame(HEARTBEAT, 0, &[])
}

/// The answer of a broker to a client that has said hello.
fn start() -> Vec<u8> {
    method(0, 10, 10, b"\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US")
}

/// A stream that begins as every connection does.
fn begun(parts: &[Vec<u8>]) -> Vec<u8> {
    [start(), parts.concat()].concat()
}

/// What comes out of a reader into which the bytes go in pieces of these sizes, taken in turn.
fn pieces(
    screen: &Arc<Screen>,
    mut bytes: &[u8],
    sizes: &[usize],
) -> (Vec<u8>, Option<FrameError>) {
    let mut reader = FrameReader::new(screen.clone(), 0);
    let mut sizes = sizes.iter().cycle().copied();
    let mut passed = Vec::new();
    loop {
        let mut out = vec![0; sizes.next().unwrap_or(usize::MAX).min(bytes.len() + 1000)];
        match reader.give(&mut out) {
            Ok(0) => {}
            Ok(count) => {
                passed.extend(&out[..count]);
                continue;
            }
            Err(error) => return (passed, Some(error)),
        }
        if bytes.is_empty() {
            return (passed, None);
        }
        let room = reader.room();
        assert!(!room.is_empty());
        let count = sizes.next().unwrap_or(usize::MAX);
        let count = count.min(room.len()).min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        reader.filled(count);
        assert!(reader.buffer.len() <= MAX_FRAME_BYTES as usize);
    }
}

fn through(screen: &Arc<Screen>, bytes: &[u8]) -> Vec<u8> {
    let (passed, error) = pieces(screen, bytes, &[usize::MAX]);
    assert_eq!(error, None);
    passed
}

fn failure(bytes: &[u8]) -> FrameError {
    let (_, error) = pieces(&Arc::new(Screen::new(BOUNDS)), bytes, &[usize::MAX]);
    error.expect("it is an error")
}

/// What lapin's parser makes of these bytes, all of which it must read.
fn parsed(mut bytes: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (rest, frame) = parse_frame(bytes).expect("lapin reads it");
        frames.push(frame);
        bytes = rest;
    }
    frames
}

#[test]
fn what_lapin_can_read_passes_as_it_came() {
    let screen = Arc::new(Screen::new(BOUNDS));
    let stream = begun(&[
        method(0, 10, 30, b"\0\x64\0\x02\0\0\0\0"),
        method(0, 10, 41, b"\0"),
        heartbeat(),
        method(1, 20, 11, b"\0\0\0\0"),
        message(1, 1, &named("m-1"), b"one"),
        message(1, 2, &[0, 0], b""),
        method(1, 60, 80, b"\0\0\0\0\0\0\0\x01\0"),
        message(1, 3, &named("m-3"), &[b'x'; 90_000]),
        message(2, 1, &named("m-1"), &[7; 100_000]),
    ]);
    assert_eq!(through(&screen, &stream), stream);
    for tag in 1..4 {
        assert!(screen.take(1, tag).is_none());
    }
    assert_eq!(screen.held_bytes(), 190_003);
    parsed(&stream);
}

#[test]
fn a_content_header_that_lapin_cannot_read_is_replaced_by_an_empty_one() {
    let screen = Arc::new(Screen::new(BOUNDS));
    let bad = b"\x00\x80\x02m\xff";
    let stream = begun(&[
        message(1, 1, &named("m-1"), b"one"),
        message(1, 2, bad, b"two"),
        message(1, 3, &named("m-3"), b"three"),
    ]);
    let expected = begun(&[
        message(1, 1, &named("m-1"), b"one"),
        message(1, 2, &[0, 0], b"two"),
        message(1, 3, &named("m-3"), b"three"),
    ]);
    assert_eq!(through(&screen, &stream), expected);
    let withheld = screen.take(1, 2).unwrap();
    let unreadable = withheld.unreadable.unwrap();
    assert_eq!(unreadable.properties.bytes, bad);
    assert_eq!(unreadable.routing_key, b"k");
    assert_eq!(unreadable.why.code(), "property-not-utf8");
    assert_eq!(withheld.body, Body::Whole);
    assert_eq!(withheld.held_bytes, 3);
    assert!(screen.take(1, 1).is_none() && screen.take(1, 3).is_none());
}

#[test]
fn a_routing_key_that_is_no_text_is_replaced_and_kept() {
    let screen = Arc::new(Screen::new(BOUNDS));
    let properties = named("m-1");
    let stream = begun(&[
        deliver(1, 1, b"k\xff\xfe"),
        header(1, 3, &properties),
        body(1, b"one"),
    ]);
    let expected = begun(&[
        deliver(1, 1, b"k??"),
        header(1, 3, &[0, 0]),
        body(1, b"one"),
    ]);
    assert_eq!(through(&screen, &stream), expected);
    let unreadable = screen.take(1, 1).unwrap().unreadable.unwrap();
    assert_eq!(unreadable.routing_key, b"k\xff\xfe");
    assert_eq!(unreadable.properties.bytes, properties);
    assert_eq!(unreadable.why.to_string(), "the routing key is not UTF-8");
}

#[test]
fn a_content_of_another_class_reaches_lapin_as_an_empty_one_of_basic() {
    let screen = Arc::new(Screen::new(BOUNDS));
    let mut other = header(1, 3, &named("m"));
    other[8] = 61;
    let stream = begun(&[deliver(1, 1, b"k"), other, body(1, b"one")]);
    assert_eq!(
        through(&screen, &stream),
        begun(&[message(1, 1, &[0, 0], b"one")])
    );
    let unreadable = screen.take(1, 1).unwrap().unreadable.unwrap();
    assert_eq!(unreadable.why.code(), "content-class");
}

#[test]
fn a_returned_message_that_lapin_cannot_read_is_emptied_too() {
    let returned = |id: &[u8]| {
        [
            method(1, 60, 50, b"\x01\x38\x08NO_ROUTE\0\x01k"),
            header(1, 3, id),
            body(1, b"one"),
        ]
        .concat()
    };
    let screen = Arc::new(Screen::open());
    let stream = begun(&[returned(b"\x00\x80\x01\xff"), returned(&named("m"))]);
    let expected = begun(&[returned(&[0, 0]), returned(&named("m"))]);
    assert_eq!(through(&screen, &stream), expected);
}

#[test]
fn a_body_over_its_bound_is_looked_at_and_left_out_before_its_header_comes() {
    let screen = Arc::new(Screen::new(BOUNDS));
    let large = (0..250_000_u32).map(|n| n as u8).collect::<Vec<_>>();
    let frames = body(1, &large);
    let (first, rest) = frames.split_at(100_008);
    let stream = begun(&[
        deliver(1, 1, b"k"),
        header(1, large.len() as u64, &named("m-1")),
        first.to_vec(),
        message(2, 1, &[0, 0], b"a neighbour"),
        rest.to_vec(),
        message(1, 2, &[0, 0], b"two"),
    ]);
    let expected = begun(&[
        deliver(1, 1, b"k"),
        message(2, 1, &[0, 0], b"a neighbour"),
        header(1, 0, &named("m-1")),
        message(1, 2, &[0, 0], b"two"),
    ]);
    assert_eq!(through(&screen, &stream), expected);
    let withheld = screen.take(1, 1).unwrap();
    assert!(withheld.unreadable.is_none());
    let expected = Body::TooLarge {
        length: 250_000,
        sha256: Sha256::digest(&large).into(),
        beginning: large[..BEGINNING_BYTES].to_vec(),
    };
    assert_eq!(withheld.body, expected);
    assert_eq!(screen.held_bytes(), 14);
}

#[test]
fn nothing_passes_a_delivery_that_was_over_the_budget_on_its_channel() {
    let screen = Arc::new(Screen::new(BOUNDS));
    let (large, small) = (vec![1; 100_000], b"small");
    let mut stream = Vec::new();
    let mut expected = Vec::new();
    for tag in 1..=3 {
        stream.push(message(1, tag, &named("m"), &large));
        expected.push(message(1, tag, &named("m"), &large));
    }
    stream.push(message(1, 4, &named("m"), small));
    stream.push(message(1, 5, &named("m"), &vec![1; 200_000]));
    stream.push(message(1, 6, b"\x00\x80\x01\xff", b""));
    for tag in 4..=6 {
        expected.push([deliver(1, tag, b"k"), header(1, 0, &[0, 0])].concat());
    }
    stream.push(heartbeat());
    expected.push(heartbeat());
    assert_eq!(through(&screen, &begun(&stream)), begun(&expected));
    assert_eq!(screen.held_bytes(), 300_000);
    for (tag, length) in [(4, 5), (5, 200_000), (6, 0)] {
        assert_eq!(
            screen.take(1, tag).unwrap().body,
            Body::OverBudget { length }
        );
    }
    // A channel that is opened anew begins anew; so does the budget, with what is given back.
    screen.release(300_000);
    let again = begun(&[
        method(1, 20, 11, b"\0\0\0\0"),
        message(1, 1, &[0, 0], small),
    ]);
    assert_eq!(through(&screen, &again), again);
}

#[test]
fn one_message_alone_is_let_through_whatever_the_budget() {
    let bounds = Bounds {
        max_body_bytes: 1_000_000,
        held_bytes: 10,
    };
    let screen = Arc::new(Screen::new(bounds));
    let stream = begun(&[message(1, 1, &[0, 0], &[1; 500_000])]);
    assert_eq!(through(&screen, &stream), stream);
}

#[test]
fn no_properties_pass_where_lapin_could_not_read_what_the_walk_could() {
    let screen = Arc::new(Screen::new(BOUNDS).distrusting(true));
    let properties = named("m");
    let stream = begun(&[message(1, 1, &properties, b"body")]);
    let expected = begun(&[message(1, 1, &[0, 0], b"body")]);
    assert_eq!(through(&screen, &stream), expected);
    let unreadable = screen.take(1, 1).unwrap().unreadable.unwrap();
    assert_eq!(unreadable.properties.bytes, properties);
    assert_eq!(unreadable.why, super::super::walk::Refusal::Unread);
}

#[test]
fn headers_that_cost_much_memory_count_as_held() {
    let screen = Arc::new(Screen::new(BOUNDS));
    let count = 2_000_u32;
    let mut properties = vec![0x20, 0];
    properties.extend((count + 7).to_be_bytes());
    properties.extend(b"\x01aA");
    properties.extend(count.to_be_bytes());
    properties.extend(vec![b'V'; count as usize]);
    let many = |tag| message(1, tag, &properties, b"body");
    let stream = begun(&[many(1), many(2)]);
    let expected = begun(&[many(1), deliver(1, 2, b"k"), header(1, 0, &[0, 0])]);
    assert_eq!(through(&screen, &stream), expected);
    let withheld = screen.take(1, 1).unwrap();
    assert!(withheld.unreadable.is_none());
    assert_eq!(withheld.body, Body::Whole);
    assert_eq!(withheld.held_bytes, screen.held_bytes());
}

#[test]
fn a_header_that_is_longer_than_a_frame_may_be_is_read_past() {
    let screen = Arc::new(Screen::new(BOUNDS));
    let mut properties = vec![0x20, 0];
    properties.extend(300_007_u32.to_be_bytes());
    properties.extend(b"\x01aS");
    properties.extend(300_000_u32.to_be_bytes());
    properties.extend(vec![0xff; 300_000]);
    let stream = begun(&[
        message(1, 1, &properties, b"one"),
        message(1, 2, &properties, &[9; 150_000]),
        message(1, 3, &named("m"), b"three"),
    ]);
    let expected = begun(&[
        message(1, 1, &[0, 0], b"one"),
        deliver(1, 2, b"k"),
        header(1, 0, &[0, 0]),
        message(1, 3, &named("m"), b"three"),
    ]);
    assert_eq!(through(&screen, &stream), expected);
    for tag in [1, 2] {
        let unreadable = screen.take(1, tag).unwrap().unreadable.unwrap();
        assert_eq!(unreadable.why.code(), "headers-too-long");
        let raw = unreadable.properties;
        assert_eq!(raw.length, properties.len() as u64);
        assert_eq!(raw.sha256, Some(Sha256::digest(&properties).into()));
        assert_eq!(raw.bytes, properties[..raw.bytes.len()]);
    }
    // With frames of 1 MiB it is a header like any other.
    screen.release(u64::MAX);
    let tune = method(0, 10, 30, b"\0\x64\0\x10\0\0\0\0");
    let stream = begun(&[tune, message(1, 4, &properties, b"one")]);
    assert_eq!(through(&screen, &stream), stream);
}

#[test]
fn a_broker_that_sets_no_bound_for_frames_gets_one() {
    let screen = Arc::new(Screen::open());
    for (offered, agreed) in [
        (0, MAX_FRAME_BYTES),
        (u32::MAX, MAX_FRAME_BYTES),
        (131_072, 131_072),
        (1, MIN_FRAME_BYTES),
    ] {
        let tune = |bytes: u32| {
            let arguments = [&[0, 100][..], &bytes.to_be_bytes(), &[0, 60]].concat();
            method(0, 10, 30, &arguments)
        };
        let passed = through(&screen, &begun(&[tune(offered)]));
        assert_eq!(passed, begun(&[tune(agreed)]));
    }
}

#[test]
fn the_broker_is_known_by_what_it_says_of_itself() {
    let screen = Arc::new(Screen::open());
    assert_eq!(screen.server_version(), None);
    let properties = b"\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x064.1.12";
    let arguments = [
        &[0, 9][..],
        &(properties.len() as u32).to_be_bytes(),
        properties,
        b"\0\0\0\x05PLAIN\0\0\0\x05en_US",
    ];
    let start = method(0, 10, 10, &arguments.concat());
    assert_eq!(through(&screen, &start), start);
    assert_eq!(screen.server_version(), Some((4, 1, 12)));
    assert_eq!(screen.server().unwrap().product, "RabbitMQ");
}

#[test]
fn methods_that_lapin_cannot_read_are_made_readable() {
    let screen = Arc::new(Screen::open());
    let stream = begun(&[method(1, 20, 40, b"\x01\x90\x04no \xff\0\x3c\0\x28")]);
    let expected = begun(&[method(1, 20, 40, b"\x01\x90\x04no ?\0\x3c\0\x28")]);
    assert_eq!(through(&screen, &stream), expected);
    // A table in a method, which only the first one has.
    let stream = method(
        0,
        10,
        10,
        b"\0\x09\0\0\0\x03\x01az\0\0\0\x05PLAIN\0\0\0\x05en_US",
    );
    assert_eq!(through(&screen, &stream), start());
}

#[test]
fn a_broker_that_breaks_the_protocol_is_told_what_it_did() {
    let unended = {
        let mut frame = heartbeat();
        frame[7] = 0;
        frame
    };
    let cut = |mut frame: Vec<u8>| {
        let last = frame.len() - 1;
        frame[last] = 1;
        frame
    };
    let claims = |kind: u8, size: u32| {
        let mut head = vec![kind, 0, 1];
        head.extend(size.to_be_bytes());
        head
    };
    for (stream, error) in [
        (b"\x15\x03\x03\0\x02\x02\x28".to_vec(), FrameError::Tls),
        (b"HTTP/1.1 400 Bad Request".to_vec(), FrameError::NotAmqp),
        (b"AMQX\0\0\x09\x01".to_vec(), FrameError::NotAmqp),
        (begun(&[vec![9; 8]]), FrameError::FrameType(9)),
        (begun(&[unended]), FrameError::FrameEnd(0)),
        (
            begun(&[
                deliver(1, 1, b"k"),
                header(1, 2, &[0, 0]),
                cut(body(1, b"ab")),
            ]),
            FrameError::FrameEnd(1),
        ),
        (
            begun(&[method(1, 60, 40, b"")]),
            FrameError::UnknownMethod {
                class: 60,
                method: 40,
            },
        ),
        (
            begun(&[method(1, 60, 80, b"\0")]),
            FrameError::Arguments {
                class: 60,
                method: 80,
            },
        ),
        (
            begun(&[frame(METHOD, 1, b"\0\x3c")]),
            FrameError::NoMethod(2),
        ),
        (
            begun(&[deliver(1, 1, b"k"), frame(HEADER, 1, &[0; 13])]),
            FrameError::ShortHeader(13),
        ),
        (
            begun(&[deliver(1, 1, b"k"), deliver(1, 2, b"k")]),
            FrameError::Unfinished(1),
        ),
        (
            begun(&[
                deliver(1, 1, b"k"),
                header(1, 2, &[0, 0]),
                header(1, 2, &[0, 0]),
            ]),
            FrameError::Unfinished(1),
        ),
        (
            begun(&[deliver(1, 1, b"k"), header(1, 2, &[0, 0]), body(1, b"abc")]),
            FrameError::LongBody(1),
        ),
        (
            begun(&[
                deliver(1, 1, b"k"),
                header(1, 150_000, &[0, 0]),
                body(1, &[1; 200_000]),
            ]),
            FrameError::LongBody(1),
        ),
        (
            begun(&[claims(METHOD, u32::MAX)]),
            FrameError::TooLong {
                bytes: u64::from(u32::MAX) + 8,
                limit: 131_072,
            },
        ),
        (
            begun(&[claims(HEADER, 17 << 20)]),
            FrameError::TooLong {
                bytes: (17 << 20) + 8,
                limit: 131_072,
            },
        ),
        (
            begun(&[claims(BODY, 1 << 20)]),
            FrameError::TooLong {
                bytes: (1 << 20) + 8,
                limit: 131_072,
            },
        ),
    ] {
        assert_eq!(failure(&stream), error, "{stream:?}");
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn a_broker_of_another_version_is_lapins_to_refuse() {
    let screen = Arc::new(Screen::open());
    let answer = b"AMQP\0\x01\x00\x00";
    assert_eq!(through(&screen, answer), answer);
}

#[test]
fn a_heartbeat_stands_in_for_what_is_left_out() {
    let mut reader = FrameReader::new(Arc::new(Screen::new(BOUNDS)), 0);
    let frames = body(1, &[1; 200_000]);
    let stream = begun(&[
        deliver(1, 1, b"k"),
        header(1, 200_000, &[0, 0]),
        frames[..1000].to_vec(),
    ]);
    reader.room()[..stream.len()].copy_from_slice(&stream);
    reader.filled(stream.len());
    let mut out = vec![0; 200_000];
    let count = reader.give(&mut out).unwrap();
    assert_eq!(out[..count], begun(&[deliver(1, 1, b"k")]));
    assert_eq!(reader.take_left_out(), 22 + 1000);
    assert_eq!(reader.take_left_out(), 0);
    reader.insert_heartbeat();
    // A little at a time.
    assert_eq!(reader.give(&mut out[..3]).unwrap(), 3);
    assert_eq!(reader.give(&mut out[3..]).unwrap(), 5);
    assert_eq!(out[..8], heartbeat());
}

/// Streams of deliveries, some of which lapin must not see, on two channels.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let message = (
        1..3_u16,
        damaged(encoded()),
        0..3_u8,
        any::<u16>(),
        "[a-z]{0,4}",
    );
    vec(message, 0..12).prop_map(|messages| {
        let mut stream = Vec::new();
        for (tag, (channel, properties, kind, size, key)) in messages.into_iter().enumerate() {
            let key = match kind {
                0 => [key.as_bytes(), b"\xf0\x9f"].concat(),
                _ => key.into_bytes(),
            };
            let bytes = vec![kind; usize::from(size) * usize::from(kind) * 2];
            stream.push(deliver(channel, tag as u64, &key));
            stream.push(header(channel, bytes.len() as u64, &properties));
            stream.push(body(channel, &bytes));
        }
        begun(&stream)
    })
}

/// Every frame that came out is one that lapin reads; only the last may lack its end.
fn assert_lapin_reads(passed: &[u8], cut: bool) -> Result<(), TestCaseError> {
    let mut rest = passed;
    while !rest.is_empty() {
        match parse_frame(rest) {
            Ok((behind, _)) => rest = behind,
            Err(error) => {
                prop_assert!(cut && error.is_incomplete(), "{error:?}");
                break;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_does_not_matter_in_which_pieces_the_bytes_come(
        stream in streams(),
        sizes in vec(1..3000_usize, 1..20),
    ) {
        let [whole, split] = [(); 2].map(|()| Arc::new(Screen::new(BOUNDS)));
        let (expected, error) = pieces(&whole, &stream, &[usize::MAX]);
        let (passed, same) = pieces(&split, &stream, &sizes);
        prop_assert_eq!(error, same);
        prop_assert!(passed == expected);
        prop_assert_eq!(whole.held_bytes(), split.held_bytes());
        assert_lapin_reads(&passed, error.is_some())?;
        // Of a header that is shorter than any nobody knows how long the body is.
        prop_assert!(matches!(error, None | Some(FrameError::ShortHeader(_))));
        // What lapin got, and what was withheld, are all the deliveries.
        let deliveries = parsed(&passed);
        for frame in deliveries {
            if let AMQPFrame::Method(channel, AMQPClass::Basic(method)) = frame
                && let amq_protocol::protocol::basic::AMQPMethod::Deliver(delivery) = method
            {
                let [one, other] = [&whole, &split].map(|screen| screen.take(channel, delivery.delivery_tag));
                prop_assert_eq!(format!("{one:?}"), format!("{other:?}"));
            }
        }
    }

    #[test]
    fn any_stream_ends_in_frames_that_lapin_reads(
        stream in damaged(streams()),
        sizes in vec(1..3000_usize, 1..20),
    ) {
        let screen = Arc::new(Screen::new(BOUNDS));
        let (passed, _) = pieces(&screen, &stream, &sizes);
        assert_lapin_reads(&passed, true)?;
    }

    #[test]
    fn any_bytes_end_in_frames_that_lapin_reads(bytes in vec(any::<u8>(), 0..2000), begins in any::<bool>()) {
        let screen = Arc::new(Screen::new(BOUNDS));
        let stream = if begins { begun(&[bytes]) } else { bytes };
        let (passed, _) = pieces(&screen, &stream, &[100]);
        assert_lapin_reads(&passed, true)?;
    }
}
