use std::collections::BTreeSet;

use super::*;

fn files_below(directory: &Path, ending: &str, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("it is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(&path, ending, found);
        } else if path.extension().is_some_and(|one| one == ending) {
            found.insert(path);
        }
    }
}

/// A file that is added to the SDK and not to a project would break projects only.
#[test]
fn a_project_has_the_whole_sdk() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-sdk");
    let cases = [
        (
            Language::Rust,
            "sdk/hapax-guest",
            vec!["src", "macros/src"],
            "rs",
            "",
        ),
        (Language::Python, "", vec!["python/hapax"], "py", "python"),
        (Language::JavaScript, "", vec!["js"], "js", "js"),
    ];
    for (language, root, directories, ending, strip) in cases {
        let mut there = BTreeSet::new();
        for directory in directories {
            files_below(&sdk.join(directory), ending, &mut there);
        }
        assert!(!there.is_empty());
        let project: BTreeSet<_> = files::of(language, "shop")
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        for file in there {
            let inside = file.strip_prefix(sdk.join(strip)).expect("it is below");
            let wanted = Path::new(root).join(inside).display().to_string();
            assert!(project.contains(&wanted), "{wanted}");
        }
    }
}

#[test]
fn everything_is_filled_in() {
    for language in [Language::Rust, Language::Python, Language::JavaScript] {
        for (path, text) in files::of(language, "my-shop") {
            let own = !path.contains("sdk/") && !path.ends_with(".js") && !path.ends_with(".py");
            assert!(!own || !text.contains("{{"), "{path}: {text}");
            assert!(!text.contains(".workspace = true"), "{path}: {text}");
        }
    }
}

#[test]
fn names_that_cannot_be_packages_are_refused() {
    for good in ["points", "my-points", "some/where/points2"] {
        assert!(project_name(Path::new(good)).is_ok(), "{good}");
    }
    for bad in [
        "",
        "..",
        "Points",
        "2points",
        "my_points",
        "p oints",
        "test",
        "prüfung",
    ] {
        let error = project_name(Path::new(bad)).expect_err(bad);
        assert_eq!(error.code(), 64, "{bad}");
    }
}

#[test]
fn a_directory_that_is_there_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let error = make(directory.path(), &[]).expect_err("it is there");
    assert!(error.to_string().contains("is there already"), "{error}");
}
