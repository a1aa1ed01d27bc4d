use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn address() -> SocketAddr {
    "127.0.0.1:9470".parse().expect("an address")
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the own file");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o777
}

/// A state directory that is not there yet.
fn state() -> (tempfile::TempDir, Vec<PathBuf>) {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("state/hapax");
    (directory, vec![place])
}

fn refused(places: &[PathBuf]) -> String {
    keep(places, address())
        .expect_err("it is no good")
        .to_string()
}

#[test]
fn it_is_made_once_for_its_user_alone_and_found_again() {
    let (_directory, places) = state();
    let made = keep(&places, address()).expect("a token");
    let path = places[0].join("admin-127.0.0.1-9470.token");
    assert_eq!((mode(&places[0]), mode(&path)), (0o700, 0o600));
    assert_eq!(made.expose().len(), 64);
    let again = keep(&places, address()).expect("the same");
    assert_eq!(again.expose(), made.expose());
    let (found, place) = find(&places, address()).expect("the same");
    assert_eq!((found.expose(), place), (made.expose(), path));
    // No other name is left over.
    assert_eq!(fs::read_dir(&places[0]).expect("a directory").count(), 1);
    let other = keep(&places, "[::1]:9470".parse().expect("an address")).expect("a token");
    assert_ne!(other.expose(), made.expose());
    assert!(places[0].join("admin---1-9470.token").exists());
}

#[test]
fn hosts_that_start_together_agree_on_one() {
    let (_directory, places) = state();
    let tokens: Vec<_> = std::thread::scope(|scope| {
        let hosts = [(); 8].map(|()| scope.spawn(|| keep(&places, address()).expect("a token")));
        hosts
            .into_iter()
            .map(|host| host.join().expect("no panic").expose().to_owned())
            .collect()
    });
    assert!(tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
}

#[test]
fn one_that_others_may_know_is_refused() {
    let (_directory, places) = state();
    keep(&places, address()).expect("a token");
    let path = places[0].join(file_name(address()));
    for open in [0o640, 0o604, 0o620, 0o602] {
        set_mode(&path, open);
        assert!(refused(&places).contains("others can read or change it"));
    }
    set_mode(&path, 0o600);
    keep(&places, address()).expect("it is good again");
    fs::write(&path, "short\n").expect("the own file");
    assert!(refused(&places).contains("letters and digits"));
    fs::remove_file(&path).expect("the own file");
    set_mode(&places[0], 0o770);
    assert!(refused(&places).contains("other users can write to it"));
}

#[test]
fn a_link_is_never_followed() {
    let (directory, places) = state();
    fs::create_dir_all(&places[0]).expect("a directory");
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, "a".repeat(64)).expect("a file");
    set_mode(&elsewhere, 0o600);
    let path = places[0].join(file_name(address()));
    symlink(&elsewhere, &path).expect("a link");
    assert!(refused(&places).contains("it is a link"));
    let found = find(&places, address()).expect_err("it is a link");
    assert!(found.to_string().contains("it is a link"), "{found}");
    // Nor is one that leads nowhere filled.
    fs::remove_file(&elsewhere).expect("a file");
    assert!(refused(&places).contains("it is a link"));
    assert!(!elsewhere.exists());
}

#[test]
fn somebody_else_s_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (_directory, places) = state();
    keep(&places, address()).expect("a token");
    let path = places[0].join(file_name(address()));
    std::os::unix::fs::chown(&path, Some(65534), None).expect("root may");
    assert!(refused(&places).contains("it belongs to"));
    std::os::unix::fs::chown(&places[0], Some(65534), None).expect("root may");
    assert!(refused(&places).contains("it belongs to"));
}

#[test]
fn without_a_place_it_is_said_what_to_set() {
    assert!(refused(&[]).contains("STATE_DIRECTORY"));
    // Nobody makes a directory below a file.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = refused(&[file.path().join("hapax")]);
    assert!(
        text.contains("STATE_DIRECTORY") && text.contains("unix:PATH"),
        "{text}"
    );
    let missing = find(&[file.path().join("hapax")], address()).expect_err("nothing is there");
    let text = missing.to_string();
    assert!(
        text.contains("admin-127.0.0.1-9470.token") && text.contains("as that user"),
        "{text}"
    );
}
