use super::*;

fn place() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = entries(directory)
        .iter()
        .filter_map(|(path, _)| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

#[test]
fn a_path_as_it_is_written_and_the_whole_path_have_one_history() {
    let place = place();
    let cache = Cache::open(place.path()).expect("a cache");
    let relative = Path::new("plugins/points.wasm");
    let whole = std::env::current_dir()
        .expect("there is one")
        .join(relative);
    cache.keep_versions(&whole, &[[1; 32], [2; 32]]);
    assert_eq!(cache.versions(relative), [[1; 32], [2; 32]]);
    // The same words in another project.
    let elsewhere = Path::new("/elsewhere").join(relative);
    assert!(cache.versions(&elsewhere).is_empty());
}

#[test]
fn what_a_killed_process_of_the_same_number_left_is_in_nobodys_way() {
    let place = place();
    for number in 0..1_000 {
        let left = format!("{NEW}{}-{number}", std::process::id());
        fs::write(place.path().join(left), "half").expect("written");
    }
    let path = place.path().join("a.wasm");
    write(&path, &[b"whole"]).expect("nothing is in the way");
    assert_eq!(fs::read(&path).expect("there"), b"whole");
    assert_ne!(new_name(), new_name());
}

#[test]
fn leftovers_are_removed_when_nobody_can_be_writing_them_any_more() {
    let place = place();
    let made = |name: &str, age: Duration| {
        let file = File::create(place.path().join(name)).expect("made");
        file.set_modified(SystemTime::now() - age).expect("aged");
    };
    made(".hapax-new-old", STALE * 2);
    made(".hapax-new-young", Duration::ZERO);
    made("a.wasm", STALE * 2);
    remove_leftovers(place.path());
    assert_eq!(names(place.path()), [".hapax-new-young", "a.wasm"]);
}

#[test]
fn a_damaged_copy_of_the_same_length_is_written_anew() {
    let place = place();
    let cache = Cache::open(place.path()).expect("a cache");
    let bytes = b"a component";
    let digest: PluginDigest = Sha256::digest(bytes).into();
    assert!(cache.keep_component(&digest, bytes));
    let copy = cache.components.path_of(&component_name(&digest));
    fs::write(copy, b"A component").expect("written");
    assert!(!cache.keep_component(&digest, bytes), "there was a copy");
    assert_eq!(cache.component(&digest).as_deref(), Some(&bytes[..]));
}

#[cfg(unix)]
mod others {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    const NOBODY: u32 = 65_534;

    /// Giving files away is root's privilege.
    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn allow(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    }

    #[test]
    fn a_cache_on_whose_way_others_can_write_is_not_used() {
        let place = place();
        let parent = place.path().join("parent");
        let root = parent.join("cache");
        assert!(Cache::open(&root).is_some());
        for mode in [0o777, 0o775] {
            allow(&parent, mode);
            assert!(Cache::open(&root).is_none(), "{mode:o}");
        }
        // As `/tmp`: others may write, and not remove what is ours.
        allow(&parent, 0o1777);
        assert!(Cache::open(&root).is_some());
        allow(&root.join("code"), 0o1777);
        assert!(Cache::open(&root).is_none(), "a new file may be theirs");
        allow(&root.join("code"), 0o700);
        if is_root() {
            chown(&parent, Some(NOBODY), None).expect("root may");
            assert!(Cache::open(&root).is_none());
            // The way is what counts, not its name.
            let link = place.path().join("link");
            symlink(&parent, &link).expect("made");
            assert!(Cache::open(&link.join("cache")).is_none());
        }
    }

    #[test]
    fn a_cache_that_was_replaced_under_its_path_is_the_one_that_was_opened() {
        let place = place();
        let root = place.path().join("cache");
        let cache = Cache::open(&root).expect("a cache");
        cache.keep_versions(Path::new("/a.wasm"), &[[1; 32]]);
        fs::rename(&root, place.path().join("aside")).expect("ours");
        let forged = Cache::open(&root).expect("another one");
        forged.keep_versions(Path::new("/a.wasm"), &[[2; 32]]);
        assert_eq!(cache.versions(Path::new("/a.wasm")), [[1; 32]]);
    }

    #[test]
    fn a_file_that_others_can_have_written_is_not_taken() {
        let place = place();
        let cache = Cache::open(place.path()).expect("a cache");
        let name = "a";
        let file = cache.code.path_of(name);
        let is_taken = || cache.code.read(name).is_ok();
        cache.code.write(name, &[b"code"]).expect("written");
        assert!(is_taken());
        allow(&file, 0o622);
        assert!(!is_taken());
        allow(&file, 0o600);
        assert!(is_taken());
        if is_root() {
            chown(&file, Some(NOBODY), None).expect("root may");
            assert!(!is_taken());
            chown(&file, Some(0), None).expect("root may");
        }
        let aside = cache.code.path_of("b");
        fs::rename(&file, &aside).expect("ours");
        symlink(&aside, &file).expect("made");
        assert!(!is_taken());
        fs::remove_file(&file).expect("ours");
        fs::create_dir(&file).expect("made");
        assert!(!is_taken());
    }
}
