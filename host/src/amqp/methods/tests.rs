use amq_protocol::frame::parse_frame;

use super::*;

/// Arguments as a broker may send them, with these texts.
fn sample(kinds: &[Argument], text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for kind in kinds {
        match kind {
            Argument::Bits | Argument::Octet => bytes.push(1),
            Argument::Short => bytes.extend([0, 200]),
            Argument::Long => bytes.extend([0, 0, 1, 0]),
            Argument::LongLong => bytes.extend([0, 0, 0, 0, 0, 0, 0, 9]),
            Argument::ShortText => {
                bytes.push(u8::try_from(text.len()).unwrap());
                bytes.extend(text);
            }
            Argument::LongText => {
                bytes.extend((text.len() as u32).to_be_bytes());
                bytes.extend(text);
            }
            Argument::Table => {
                let length = (text.len() + 2) as u32;
                bytes.extend(length.to_be_bytes());
                bytes.push(text.len() as u8);
                bytes.extend(text);
                bytes.push(b'V');
            }
        }
    }
    bytes
}

fn lapin_reads(method: Method, arguments: &[u8]) -> bool {
    let mut frame = vec![1, 0, 1];
    frame.extend((arguments.len() as u32 + 4).to_be_bytes());
    frame.extend(method.class.to_be_bytes());
    frame.extend(method.method.to_be_bytes());
    frame.extend(arguments);
    frame.push(0xce);
    matches!(parse_frame(&frame[..]), Ok(([], _)))
}

#[test]
fn lapin_reads_each_method_that_a_broker_sends_once_it_is_checked() {
    let mut methods = 0;
    for class in 0..=120 {
        for id in 0..=150 {
            let method = Method::new(class, id);
            let Some(kinds) = method.arguments() else {
                assert_eq!(check(method, &[]), Err(Wrong::Unknown));
                continue;
            };
            methods += 1;
            let good = sample(kinds, "clé".as_bytes());
            assert_eq!(check(method, &good), Ok(Checked::Good), "{method:?}");
            assert!(lapin_reads(method, &good), "{method:?}");
            let bad = sample(kinds, b"a\xffb\xf0\x9fc");
            match check(method, &bad) {
                Ok(Checked::Good) => assert!(lapin_reads(method, &bad), "{method:?}"),
                Ok(Checked::Rewritten(arguments)) => {
                    assert!(lapin_reads(method, &arguments), "{method:?}");
                    assert!(!lapin_reads(method, &bad), "{method:?}");
                    assert!(arguments.len() <= bad.len());
                    if !kinds.iter().any(|kind| matches!(kind, Argument::Table)) {
                        assert_eq!(arguments, sample(kinds, b"a?b??c"), "{method:?}");
                    }
                }
                Err(wrong) => panic!("{method:?}: {wrong:?}"),
            }
            let longer = [&good[..], &[0]].concat();
            assert_eq!(check(method, &longer), Err(Wrong::Length), "{method:?}");
            if let Some((_, shorter)) = good.split_last() {
                assert_eq!(check(method, shorter), Err(Wrong::Length), "{method:?}");
            }
        }
    }
    assert_eq!(methods, 39);
}

#[test]
fn a_delivery_says_which_of_its_names_is_none() {
    for (exchange, routing_key, why) in
        [("e", "k", None), ("", "", None), ("\u{e9}", "\u{e9}", None)]
    {
        let bytes = deliver(b"c", exchange.as_bytes(), routing_key.as_bytes());
        let delivery = Deliver::read(&bytes).unwrap();
        assert_eq!(delivery.tag, 7);
        assert_eq!(delivery.exchange, exchange.as_bytes());
        assert_eq!(delivery.routing_key, routing_key.as_bytes());
        assert_eq!(delivery.refusal(), why);
    }
    for (exchange, routing_key, code) in [
        (&b"\xff"[..], &b"k"[..], "exchange-not-utf8"),
        (b"e", b"k\xff", "routing-key-not-utf8"),
    ] {
        let bytes = deliver(b"c", exchange, routing_key);
        let delivery = Deliver::read(&bytes).unwrap();
        assert_eq!(delivery.refusal().map(|why| why.code()), Some(code));
    }
    assert_eq!(Deliver::read(&[1, b'c', 0]), None);
}

fn deliver(consumer_tag: &[u8], exchange: &[u8], routing_key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &[u8]| {
        bytes.push(u8::try_from(text.len()).unwrap());
        bytes.extend(text);
    };
    text(&mut bytes, consumer_tag);
    bytes.extend(7_u64.to_be_bytes());
    bytes.push(0);
    text(&mut bytes, exchange);
    text(&mut bytes, routing_key);
    bytes
}
