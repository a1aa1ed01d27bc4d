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
    fs::write(cache.component_path(&digest), b"A component").expect("written");
    assert!(!cache.keep_component(&digest, bytes), "there was a copy");
    assert_eq!(cache.component(&digest).as_deref(), Some(&bytes[..]));
}
