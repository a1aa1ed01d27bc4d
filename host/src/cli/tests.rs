use super::*;

fn read(line: &str) -> Result<Arguments, Error> {
    Arguments::read(line.split(' ').map(OsString::from))
}

fn code(line: &str) -> u8 {
    read(line).map_or_else(|error| error.code(), |_| panic!("{line} was understood"))
}

#[test]
fn the_description_of_the_command_line_holds_together() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
}

#[test]
fn bad_usage_is_64_and_help_is_0() {
    for line in [
        "hapax",
        "hapax fly",
        "hapax run --lanes 3",
        "hapax publish",
        "hapax parked show",
        "hapax parked replay",
        "hapax parked discard 3f2a --all",
        "hapax parked replay 3f2a --code trap",
        "hapax parked list --limit many",
        "hapax parked list --since yesterday",
        "hapax parked discard --until 2026-01-01 --older-than 7d",
        "hapax parked list --key-format hex",
        "hapax outbox retry",
        "hapax outbox retry 7 --all",
        "hapax outbox show first",
        "hapax ledger forget k",
        "hapax ledger forget --why mistake",
        "hapax ledger list --fate lost",
        "hapax consumers pause",
        "hapax consumers pause points --all",
        "hapax consumers rekey",
        "hapax migrate --print --status",
    ] {
        assert_eq!(code(line), 64, "{line}");
    }
    for line in ["hapax --help", "hapax --version", "hapax parked --help"] {
        assert_eq!(code(line), 0, "{line}");
    }
}

#[test]
fn the_configuration_can_be_named_before_and_after_the_command() {
    for line in [
        "hapax --config a.toml status",
        "hapax parked list --config a.toml --json",
        "hapax parked discard --code trap --older-than 7d --yes --config a.toml",
        "hapax outbox retry 7 8 --config a.toml",
        "hapax ledger forget 0xff00 --why mistake --config a.toml",
        "hapax ledger import --format csv --field id --config a.toml keys.csv",
        "hapax consumers resume --all --config a.toml",
    ] {
        let arguments = read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(arguments.config, Some(PathBuf::from("a.toml")), "{line}");
    }
}

#[test]
fn an_operation_that_a_server_keeps_from_being_done_is_69_and_a_refused_one_is_1() {
    let unavailable = OperationError::Unavailable("away".into());
    let refused = OperationError::Refused("no such id".into());
    assert_eq!(Error::from(unavailable).code(), 69);
    assert_eq!(Error::from(refused).code(), 1);
}

#[test]
fn a_reader_that_has_left_is_no_failure() {
    assert_eq!(
        Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).code(),
        0
    );
    assert_eq!(
        Error::from(io::Error::from(io::ErrorKind::StorageFull)).code(),
        1
    );
}
