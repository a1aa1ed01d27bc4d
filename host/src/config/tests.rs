use std::collections::HashMap;
use std::env::VarError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use expect_test::{expect, expect_file};

use super::{
    BrokerKind, Config, KeySource, Listen, Outside, Pointer, Problems, Property, Secret, StoreKind,
};
use super::{choose, load, parse, quotable, units};

mod diagnostics;

/// A machine with these variables and files and no others.
#[derive(Default)]
struct Given {
    env: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, &'static str>,
}

impl Outside for Given {
    fn env(&self, name: &str) -> Result<String, VarError> {
        self.env
            .get(name)
            .map(|value| (*value).to_owned())
            .ok_or(VarError::NotPresent)
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        let path = path.to_str().expect("test paths are text");
        let found = self.files.get(path).map(|text| (*text).to_owned());
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such file"))
    }

    fn host_name(&self) -> String {
        "box".to_owned()
    }
}

fn given() -> Given {
    Given {
        env: HashMap::from([
            ("DATABASE_URL", "postgres://hapax:hunter2@db/shop"),
            ("PARTNER_KEY", "k-123"),
            ("LANES", "2"),
            ("MIGRATE", "true"),
            ("EMPTY", ""),
        ]),
        files: HashMap::from([
            ("/etc/hapax/admin.token", "t0ps3cret\n"),
            ("/etc/hapax/window", "2048\r\n"),
        ]),
    }
}

fn read(text: &str) -> Result<Config, Problems> {
    parse(Path::new("/etc/hapax/hapax.toml"), text, &given())
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A consumer with only what every consumer needs, and these lines.
fn consumer(lines: &str) -> String {
    format!("[[consumer]]\nname = \"c\"\nqueue = \"q\"\nplugin = \"c.wasm\"\n{lines}\n")
}

#[test]
fn the_example_names_every_field_and_reads_as_meant() {
    let text = include_str!("../../../tests/fixtures/config/full.toml");
    expect_file!["../../../tests/fixtures/config/full.txt"].assert_debug_eq(&good(text));
}

#[test]
fn the_cache_is_where_services_and_users_keep_such_things() {
    let place = |env: &[(&'static str, &'static str)], text: &str| {
        let outside = Given {
            env: env.iter().copied().collect(),
            ..Given::default()
        };
        parse(Path::new("/etc/hapax/hapax.toml"), text, &outside)
            .unwrap_or_else(|problems| panic!("{problems}"))
            .host
            .cache
    };
    let all = [
        ("CACHE_DIRECTORY", "/var/cache/shop"),
        ("XDG_CACHE_HOME", "/home/ada/.kept"),
        ("HOME", "/home/ada"),
    ];
    assert_eq!(place(&all, ""), Some("/var/cache/shop".into()));
    assert_eq!(place(&all[1..], ""), Some("/home/ada/.kept/hapax".into()));
    assert_eq!(place(&all[2..], ""), Some("/home/ada/.cache/hapax".into()));
    assert_eq!(place(&all, "[host]\ncache = \"off\""), None);
    assert_eq!(
        place(&all, "[host]\ncache = \"kept\""),
        Some("/etc/hapax/kept".into())
    );
}

#[test]
fn an_empty_file_is_a_host_on_sqlite_with_the_embedded_broker() {
    expect![[r#"
        Config {
            path: "/etc/hapax/hapax.toml",
            store: Store {
                kind: Sqlite {
                    path: "/etc/hapax/hapax.db",
                },
                schema: "public",
                migrate: true,
                max_connections: None,
                statement_timeout: 5s,
                lock_timeout: 2s,
            },
            broker: Broker {
                kind: Embedded,
                heartbeat: 20s,
                connect_timeout: 10s,
                consumer_timeout: Some(
                    1800s,
                ),
            },
            health: Health {
                listen: Some(
                    127.0.0.1:9471,
                ),
                max_connections: 64,
            },
            admin: Admin {
                listen: Some(
                    Tcp(
                        127.0.0.1:9470,
                    ),
                ),
                token: None,
                max_connections: 64,
                state: [],
            },
            log: Log {
                format: Auto,
                filter: "info",
            },
            host: Host {
                name: "box",
                shutdown_timeout: 20s,
                compile_timeout: 300s,
                cache: None,
            },
            consumers: [],
        }
    "#]]
    .assert_debug_eq(&good(""));
}

#[test]
fn a_consumer_needs_four_fields_and_has_defaults_for_the_rest() {
    expect![[r#"
        [
            Consumer {
                name: "c",
                queue: "q",
                plugin: "/etc/hapax/c.wasm",
                key: [
                    MessageId,
                ],
                partition: [
                    MessageId,
                ],
                fingerprint: Body,
                prefetch: 1024,
                prefetch_bytes: 67108864,
                batch: 256,
                batch_bytes: 4194304,
                batch_time: 50ms,
                lanes: 1,
                retention: For(
                    604800s,
                ),
                max_message_bytes: 4194304,
                max_parked_bytes: 134217728,
                grant: Grant {
                    read: [],
                    write: [],
                    functions: [],
                },
                targets: {},
                limits: Limits {
                    cpu: 200ms,
                    wall: 5s,
                    memory: 67108864,
                    table_elements: 100000,
                    hostcall_bytes: 33554432,
                    sql_statements: 1000,
                    sql_rows: 100000,
                    sql_bytes: 16777216,
                    sql_row_time: 2s,
                    sql_row_bytes: 536870912,
                    outbox_messages: 1000,
                    outbox_bytes: 16777216,
                    log_bytes: 65536,
                },
                retry: Retry {
                    max_attempts: 5,
                    delay: 1s,
                    max_delay: 300s,
                },
                random: Seeded,
                idempotency: On,
                order: Lane,
                on_duplicate: Ack,
                park: None,
                brake: Some(
                    Brake {
                        parks: 100,
                        probe: 10s,
                        max_probe: 300s,
                    },
                ),
                config: {},
                declare: None,
            },
        ]
    "#]]
    .assert_debug_eq(&good(&consumer("key = 'message-id'")).consumers);
}

#[test]
fn the_default_batch_follows_a_small_window_and_the_default_lanes_the_store() {
    let small = good(&consumer("key = 'message-id'\nprefetch = 10"));
    assert_eq!(small.consumers[0].batch, 10);
    assert_eq!(small.consumers[0].lanes, 1);
    let server = "[store]\nurl = 'postgres://db/shop'\n[broker]\nurl = 'amqp://mq'\n";
    let server = good(&format!("{server}{}", consumer("key = 'message-id'")));
    assert_eq!(server.consumers[0].lanes, 4);
    assert!(!server.store.migrate);
}

#[test]
fn relative_paths_start_from_the_directory_of_the_file() {
    let config = good(&format!(
        "[store]\nurl = 'sqlite:data/h.db'\n{}",
        consumer("key = 'message-id'")
    ));
    assert_eq!(
        config.consumers[0].plugin,
        PathBuf::from("/etc/hapax/c.wasm")
    );
    assert_eq!(config.store.kind.to_string(), "sqlite:/etc/hapax/data/h.db");
    let absolute = good("[store]\nurl = 'sqlite:///var/h.db'");
    assert_eq!(absolute.store.kind.to_string(), "sqlite:/var/h.db");
    let beside = parse(Path::new("hapax.toml"), "", &given()).expect("an empty file is valid");
    assert_eq!(beside.store.kind.to_string(), "sqlite:hapax.db");
}

#[test]
fn any_value_may_come_from_a_variable_or_a_file() {
    let config = good(&format!(
        "[store]\nurl = {{ env = 'DATABASE_URL' }}\nmigrate = {{ env = 'MIGRATE' }}\n[broker]\nurl = 'amqp://mq'\n{}",
        consumer(
            "key = 'message-id'\nlanes = { env = 'LANES' }\nprefetch = { file = 'window' }\nconfig = { env = 'live', k = { env = 'PARTNER_KEY' } }"
        )
    ));
    let consumer = &config.consumers[0];
    assert!(config.store.migrate);
    assert_eq!((consumer.lanes, consumer.prefetch), (2, 2048));
    // A table whose names the user chooses is no reference, even when it looks like one.
    assert_eq!(consumer.config["env"], "live");
    assert_eq!(consumer.config["k"], "k-123");
}

#[test]
fn a_key_may_be_left_out_only_without_idempotency() {
    let off = good(&consumer("idempotency = 'off'"));
    assert!(off.consumers[0].key.is_empty() && off.consumers[0].partition.is_empty());
    assert!(read(&consumer("")).is_err());
    assert!(read(&consumer("idempotency = 'on'")).is_err());
}

#[test]
fn a_partition_is_the_key_unless_it_is_written() {
    let same = good(&consumer("key = ['header:tenant', 'body:/id']"));
    assert_eq!(same.consumers[0].partition, same.consumers[0].key);
    let own = good(&consumer("key = 'message-id'\npartition = 'routing-key'"));
    assert_eq!(own.consumers[0].partition, [KeySource::RoutingKey]);
}

#[test]
fn an_address_may_be_switched_off_or_guarded_by_a_token() {
    let config = good("[health]\nlisten = 'off'\n[admin]\nlisten = '[::]:1'\ntoken = 'x'");
    assert_eq!(config.health.listen, None);
    assert_eq!(config.admin.token.expect("it was given").expose(), "x");
    assert!(
        read("[admin]\nlisten = '[::1]:9470'").is_ok(),
        "loopback has a token of its own"
    );
    let socket = good("[admin]\nlisten = 'unix:run/admin.sock'");
    let path = "/etc/hapax/run/admin.sock".into();
    assert_eq!(socket.admin.listen, Some(Listen::Unix(path)));
}

#[test]
fn a_token_is_kept_where_services_and_users_keep_their_state() {
    let places = |env: &[(&'static str, &'static str)]| {
        let outside = Given {
            env: env.iter().copied().collect(),
            ..Given::default()
        };
        parse(Path::new("/etc/hapax/hapax.toml"), "", &outside)
            .unwrap_or_else(|problems| panic!("{problems}"))
            .admin
            .state
    };
    let all = [
        ("STATE_DIRECTORY", "/var/lib/hapax:/var/lib/other"),
        ("XDG_STATE_HOME", "/home/ada/.kept"),
        ("HOME", "/home/ada"),
    ];
    let paths = [
        "/var/lib/hapax",
        "/home/ada/.kept/hapax",
        "/home/ada/.local/state/hapax",
    ];
    assert_eq!(places(&all), paths.map(PathBuf::from));
    assert_eq!(places(&all[2..]), [PathBuf::from(paths[2])]);
    assert_eq!(places(&[("HOME", "elsewhere")]), Vec::<PathBuf>::new());
}

#[test]
fn rules_print_as_they_are_written() {
    for text in [
        "message-id",
        "routing-key",
        "property:type",
        "property:cluster-id",
        "header:x:y",
        "body:/a~1b/~01/0//c",
    ] {
        let source: KeySource = text.parse().expect("it is a key source");
        assert_eq!(source.to_string(), text);
    }
    let alias: KeySource = "property:message-id".parse().expect("it is a key source");
    assert_eq!(alias, KeySource::MessageId);
    for property in Property::ALL {
        assert_eq!(property.name().parse(), Ok(property));
    }
    for (written, shown) in [
        ("'body'", "body"),
        ("'none'", "none"),
        ("'/a'", r#"["/a"]"#),
        ("['/a', '/b\"c']", r#"["/a", "/b\"c"]"#),
        ("{ except = '/a' }", r#"{ except = ["/a"] }"#),
    ] {
        let config = good(&consumer(&format!(
            "key = 'message-id'\nfingerprint = {written}"
        )));
        assert_eq!(config.consumers[0].fingerprint.to_string(), shown);
        // What is shown reads as the same rule.
        let quoted = if shown.starts_with(['[', '{']) {
            shown.to_owned()
        } else {
            format!("'{shown}'")
        };
        let again = good(&consumer(&format!(
            "key = 'message-id'\nfingerprint = {quoted}"
        )));
        assert_eq!(
            again.consumers[0].fingerprint,
            config.consumers[0].fingerprint
        );
    }
}

#[test]
fn a_pointer_is_unescaped_in_one_pass() {
    let pointer: Pointer = "/a~1b/~01/~00/".parse().expect("it is a pointer");
    assert_eq!(pointer.tokens(), ["a/b", "~1", "~0", ""]);
    assert_eq!(pointer.as_str(), "/a~1b/~01/~00/");
    for wrong in ["", "a", "#/a", "/a~", "/~2", "/~~0"] {
        assert!(wrong.parse::<Pointer>().is_err(), "{wrong}");
    }
}

#[test]
fn units_read_back_what_they_show() {
    for text in ["1ms", "200ms", "5s", "90s", "5m", "1h", "36h", "7d"] {
        let duration = units::duration(text).expect("it is a duration");
        assert_eq!(units::show_duration(duration), text);
        assert_eq!(
            units::duration(&units::show_duration(duration)),
            Ok(duration)
        );
    }
    assert_eq!(
        units::duration("1500ms").map(units::show_duration),
        Ok("1500ms".to_owned())
    );
    assert_eq!(units::duration("7d"), Ok(Duration::from_hours(168)));
    for (text, bytes) in [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1KiB", 1024),
        ("64MiB", 64 << 20),
        ("1GiB", 1 << 30),
    ] {
        assert_eq!(units::bytes(text), Ok(bytes), "{text}");
        assert_eq!(units::bytes(&units::show_bytes(bytes)), Ok(bytes), "{text}");
    }
    for wrong in [
        "",
        "s",
        "-1s",
        "+1s",
        "1.5s",
        "1 s",
        "1S",
        "5",
        "1s2",
        "１s",
        "18446744073709551615d",
    ] {
        assert!(units::duration(wrong).is_err(), "{wrong}");
    }
    for wrong in [
        "",
        "B",
        "1kb",
        "1KB",
        "-1",
        "1.5MiB",
        "18446744073709551615KiB",
    ] {
        assert!(units::bytes(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_secret_prints_without_what_is_secret() {
    for (url, shown) in [
        ("postgres://u:p@h/db", "postgres://u:***@h/db"),
        ("amqps://u:a%2Fb@h:5671/%2f", "amqps://u:***@h:5671/%2f"),
        // Nobody can tell where the password ends.
        ("postgres://u:p@ss@h/db", "***"),
        ("amqps://u:a/b@h:5671/%2f", "***"),
        (
            "postgres://h/db?user=u&password=p&sslmode=require",
            "postgres://h/db?user=u&password=***&sslmode=require",
        ),
        ("postgres://u@h:5432/db", "postgres://u@h:5432/db"),
        ("postgres://h:5432/db", "postgres://h:5432/db"),
    ] {
        let secret = Secret::url(url);
        assert_eq!(secret.to_string(), shown);
        assert_eq!(format!("{secret:?}"), format!("Secret({shown})"));
        assert_eq!(secret.expose(), url);
    }
    assert_eq!(
        format!("{0} {0:?}", Secret::token("x://y")),
        "*** Secret(***)"
    );
}

#[test]
fn a_configuration_prints_without_its_secrets() {
    let text = "[store]\nurl = 'postgres://u:hunter2@db/shop'\n[broker]\nurl = 'amqp://u:hunter2@mq'\n[admin]\ntoken = 'hunter2'\n";
    let config = good(text);
    let printed = format!("{config:?} {} {}", config.store.kind, config.broker.kind);
    assert!(!printed.contains("hunter2"), "{printed}");
    let (StoreKind::Postgres { url }, BrokerKind::Amqp { .. }) =
        (config.store.kind, config.broker.kind)
    else {
        panic!("both are servers");
    };
    assert!(url.expose().contains("hunter2"));
}

#[test]
fn a_file_is_looked_for_only_when_none_is_named() {
    let nowhere = |_: &Path| false;
    let anywhere = |_: &Path| true;
    let etc = |path: &Path| path.starts_with("/etc");
    let flag = Some(Path::new("flag.toml"));
    let variable = || Some(PathBuf::from("variable.toml"));
    let chosen = |found: Result<PathBuf, _>| found.map(|path| path.display().to_string()).ok();
    assert_eq!(
        chosen(choose(flag, variable(), nowhere)).as_deref(),
        Some("flag.toml")
    );
    assert_eq!(
        chosen(choose(None, variable(), anywhere)).as_deref(),
        Some("variable.toml")
    );
    assert_eq!(
        chosen(choose(None, Some(PathBuf::new()), anywhere)).as_deref(),
        Some("./hapax.toml")
    );
    assert_eq!(
        chosen(choose(None, None, etc)).as_deref(),
        Some("/etc/hapax/hapax.toml")
    );
    expect!["no configuration file: there is no ./hapax.toml and no /etc/hapax/hapax.toml; name one with --config or HAPAX_CONFIG"]
        .assert_eq(&choose(None, None, nowhere).expect_err("there is none").to_string());
}
