use lapin::uri::AMQPScheme;

use super::*;

fn host(text: &str) -> String {
    parse(text).unwrap().authority.host
}

#[test]
fn every_kind_of_host_is_the_one_that_is_named() {
    for (written, meant) in [
        ("amqp://u:p@broker/", "broker"),
        ("amqp://u:p@broker.example:5673/v", "broker.example"),
        ("amqps://u:p@192.0.2.7/", "192.0.2.7"),
        ("amqp://u:p@[::1]/", "::1"),
        ("amqps://u:p@[2001:DB8::5]:5671/v", "2001:db8::5"),
        ("AMQP://u:p@[::ffff:192.0.2.7]", "::ffff:192.0.2.7"),
        // Not well written, and yet clear.
        ("amqp://u:p@ss@broker/", "broker"),
        ("amqp://u:p%40ss%23@broker/", "broker"),
    ] {
        assert_eq!(host(written), meant, "{written}");
    }
    let uri = parse("amqps://u%40:p%2Fw@[::1]/a%2Fb?heartbeat=7").unwrap();
    assert_eq!(uri.scheme, AMQPScheme::AMQPS);
    assert_eq!(uri.authority.port, 5671);
    assert_eq!(uri.authority.userinfo.username, "u@");
    assert_eq!(uri.authority.userinfo.password, "p/w");
    assert_eq!(uri.vhost, "a/b");
    assert_eq!(uri.query.heartbeat, Some(7));
}

#[test]
fn what_is_not_clear_is_named_and_no_piece_of_a_password_with_it() {
    for (written, problem) in [
        ("amqp://user:hunter@2#3@broker/", "an `@` stands behind"),
        ("amqp://user:hunter#2@broker/", "an `@` stands behind"),
        ("amqp://user:hunter/2@broker/", "an `@` stands behind"),
        ("amqp://user:hunter?2@broker/", "an `@` stands behind"),
        ("amqp://user:12#hunter@broker/", "an `@` stands behind"),
        ("amqp://user:x@hunter#2", "a `#` stands behind"),
        ("amqp://user:hunter", "port is not a number"),
        ("amqp://user:hunter@broker:99999/", "port is out of bounds"),
        ("amqp://user:hunter@broker:0/", "port is out of bounds"),
        ("amqp://user:hunter@broker:port/", "port is not a number"),
        ("amqp://user:hunter@a,b/", "more than one host"),
        ("amqp://user:hunter@a:5672,b:5672/", "more than one host"),
        ("amqp://user:hunter@[fe80::1%25eth0]/", "IPv6 address"),
        ("amqp://user:hunter@[::1/", "IPv6 address"),
        ("amqp://user:hunter@/v", "names no host"),
        ("amqp:///v", "names no host"),
        ("amqp:user:hunter@broker", "`//` is missing"),
        ("http://user:hunter@broker/", "does not begin with"),
        ("user:hunter@broker", "does not begin with"),
        ("amqp://user:hunter@b roker/", ""),
        ("amqp://user:hunter%ff@broker/", "cannot be read"),
        (
            "amqp://user:hunter@broker/?heartbeat=often",
            "cannot be read",
        ),
        (
            "amqp://user:hunter@broker/?auth_mechanism=hunter",
            "cannot be read",
        ),
        ("amqp://user:hunter@broker/?frame_max=64", "frame_max"),
        (
            "amqp://user:hunter@broker/?frame_max=4294967295",
            "frame_max",
        ),
        ("", "does not begin with"),
        ("amqp", "does not begin with"),
        ("ämqp://hunter@broker", "does not begin with"),
    ] {
        let error = parse(written).expect_err(written).to_string();
        assert!(error.contains(problem), "{written}: {error}");
        assert!(!error.contains("hunter"), "{written}: {error}");
    }
}
