//! The files of a new project, by language. `{{name}}` and its kin are filled in.

use super::Language;

/// The contract of this version.
pub const WIT: &str = include_str!("../../../../wit/plugin.wit");

/// The SDK for Python, by its path where Python looks for it.
pub const PYTHON_SDK: &[(&str, &str)] = &[
    (
        "hapax/__init__.py",
        include_str!("../../../../guest-sdk/python/hapax/__init__.py"),
    ),
    (
        "hapax/component.py",
        include_str!("../../../../guest-sdk/python/hapax/component.py"),
    ),
    (
        "hapax/testing.py",
        include_str!("../../../../guest-sdk/python/hapax/testing.py"),
    ),
];

const JS_SDK: &[(&str, &str)] = &[
    (
        "hapax.js",
        include_str!("../../../../guest-sdk/js/hapax.js"),
    ),
    (
        "hapax-testing.js",
        include_str!("../../../../guest-sdk/js/hapax-testing.js"),
    ),
];

/// The SDK for Rust, by its path in its crate.
const RUST_SDK: &[(&str, &str)] = &[
    ("README.md", include_str!("../../../../guest-sdk/README.md")),
    (
        "macros/src/lib.rs",
        include_str!("../../../../guest-sdk/macros/src/lib.rs"),
    ),
    (
        "src/bindings.rs",
        include_str!("../../../../guest-sdk/src/bindings.rs"),
    ),
    (
        "src/context.rs",
        include_str!("../../../../guest-sdk/src/context.rs"),
    ),
    (
        "src/failure.rs",
        include_str!("../../../../guest-sdk/src/failure.rs"),
    ),
    (
        "src/host.rs",
        include_str!("../../../../guest-sdk/src/host.rs"),
    ),
    (
        "src/lib.rs",
        include_str!("../../../../guest-sdk/src/lib.rs"),
    ),
    (
        "src/log.rs",
        include_str!("../../../../guest-sdk/src/log.rs"),
    ),
    (
        "src/message.rs",
        include_str!("../../../../guest-sdk/src/message.rs"),
    ),
    (
        "src/outbox.rs",
        include_str!("../../../../guest-sdk/src/outbox.rs"),
    ),
    (
        "src/scalar.rs",
        include_str!("../../../../guest-sdk/src/scalar.rs"),
    ),
    (
        "src/sql.rs",
        include_str!("../../../../guest-sdk/src/sql.rs"),
    ),
    (
        "src/sql/error.rs",
        include_str!("../../../../guest-sdk/src/sql/error.rs"),
    ),
    (
        "src/sql/recipes.rs",
        include_str!("../../../../guest-sdk/src/sql/recipes.rs"),
    ),
    (
        "src/sql/rows.rs",
        include_str!("../../../../guest-sdk/src/sql/rows.rs"),
    ),
    (
        "src/sql/value.rs",
        include_str!("../../../../guest-sdk/src/sql/value.rs"),
    ),
    (
        "src/state.rs",
        include_str!("../../../../guest-sdk/src/state.rs"),
    ),
    (
        "src/testing.rs",
        include_str!("../../../../guest-sdk/src/testing.rs"),
    ),
    (
        "src/testing/host.rs",
        include_str!("../../../../guest-sdk/src/testing/host.rs"),
    ),
    (
        "src/testing/message.rs",
        include_str!("../../../../guest-sdk/src/testing/message.rs"),
    ),
    (
        "src/testing/run.rs",
        include_str!("../../../../guest-sdk/src/testing/run.rs"),
    ),
    (
        "src/testing/script.rs",
        include_str!("../../../../guest-sdk/src/testing/script.rs"),
    ),
];

/// Their manifests take the workspace's values, which a project does not have.
const RUST_MANIFESTS: &[(&str, &str)] = &[
    (
        "Cargo.toml",
        include_str!("../../../../guest-sdk/Cargo.toml"),
    ),
    (
        "macros/Cargo.toml",
        include_str!("../../../../guest-sdk/macros/Cargo.toml"),
    ),
];

/// What every project has.
const COMMON: &[(&str, &str)] = &[
    ("hapax.toml", include_str!("templates/hapax.toml")),
    ("schema.sql", include_str!("templates/schema.sql")),
    ("messages.jsonl", include_str!("templates/messages.jsonl")),
    ("README.md", include_str!("templates/README.md")),
];

const RUST: &[(&str, &str)] = &[
    (".gitignore", include_str!("templates/rust/gitignore")),
    ("Cargo.toml", include_str!("templates/rust/Cargo.toml")),
    ("src/lib.rs", include_str!("templates/rust/lib.rs")),
    ("tests/handle.rs", include_str!("templates/rust/tests.rs")),
];

const PYTHON: &[(&str, &str)] = &[
    (".gitignore", include_str!("templates/python/gitignore")),
    (
        "pyproject.toml",
        include_str!("templates/python/pyproject.toml"),
    ),
    (
        "requirements.txt",
        include_str!("templates/python/requirements.txt"),
    ),
    ("handler.py", include_str!("templates/python/handler.py")),
    (
        "test_handler.py",
        include_str!("templates/python/test_handler.py"),
    ),
];

const JS: &[(&str, &str)] = &[
    (".gitignore", include_str!("templates/js/gitignore")),
    ("package.json", include_str!("templates/js/package.json")),
    ("handler.js", include_str!("templates/js/handler.js")),
    (
        "handler.test.js",
        include_str!("templates/js/handler.test.js"),
    ),
];

/// What differs between the languages in a project's README.
struct Words {
    files: &'static str,
    wit: &'static str,
    setup: &'static str,
    unit: &'static str,
}

fn words(language: Language) -> Words {
    match language {
        Language::Rust => Words {
            files: "| `src/lib.rs` | the handler |\n| `tests/handle.rs` | its tests |\n| `sdk/` | the SDK of the hapax that made this project |",
            wit: "sdk/wit/plugin.wit",
            setup: "",
            unit: "cargo test",
        },
        Language::Python => Words {
            files: "| `handler.py` | the handler |\n| `test_handler.py` | its tests |\n| `hapax/` | the SDK of the hapax that made this project |",
            wit: "wit/plugin.wit",
            setup: "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt\n",
            unit: "python3 -m unittest",
        },
        Language::JavaScript => Words {
            files: "| `handler.js` | the handler |\n| `handler.test.js` | its tests |\n| `hapax.js`, `hapax-testing.js` | the SDK of the hapax that made this project |",
            wit: "wit/plugin.wit",
            setup: "npm install\n",
            unit: "npm test",
        },
    }
}

/// What a person types first.
pub fn steps(language: Language) -> Vec<&'static str> {
    let words = words(language);
    [
        words.setup.trim_end(),
        words.unit,
        "hapax build",
        "hapax test",
    ]
    .into_iter()
    .filter(|step| !step.is_empty())
    .collect()
}

/// Every file of a project, by its path in it.
pub fn of(language: Language, name: &str) -> Vec<(String, String)> {
    let words = words(language);
    let fill = |(path, text): &(&str, &str)| {
        let text = text
            .replace("{{name}}", name)
            .replace("{{crate}}", &name.replace('-', "_"))
            .replace("{{files}}", words.files)
            .replace("{{wit}}", words.wit)
            .replace("{{setup}}", words.setup)
            .replace("{{unit}}", words.unit);
        ((*path).to_owned(), text)
    };
    let plain = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
    let mut files: Vec<_> = COMMON.iter().map(fill).collect();
    match language {
        Language::Rust => {
            files.extend(RUST.iter().map(fill));
            files.extend(
                RUST_SDK
                    .iter()
                    .map(|(path, text)| (format!("sdk/hapax-guest/{path}"), (*text).to_owned())),
            );
            files.extend(
                RUST_MANIFESTS
                    .iter()
                    .map(|(path, text)| (format!("sdk/hapax-guest/{path}"), own_values(text))),
            );
        }
        Language::Python => {
            files.extend(PYTHON.iter().map(fill));
            files.extend(PYTHON_SDK.iter().map(plain));
        }
        Language::JavaScript => {
            files.extend(JS.iter().map(fill));
            files.extend(JS_SDK.iter().map(plain));
        }
    }
    files.push((words.wit.to_owned(), WIT.to_owned()));
    files
}

/// A manifest without a workspace to take values from.
fn own_values(manifest: &str) -> String {
    manifest
        .replace(
            "rust-version.workspace = true",
            concat!("rust-version = \"", env!("CARGO_PKG_RUST_VERSION"), "\""),
        )
        .replace(
            "version.workspace = true",
            concat!("version = \"", env!("CARGO_PKG_VERSION"), "\""),
        )
        .replace("edition.workspace = true", "edition = \"2024\"")
        .replace(
            "license.workspace = true",
            concat!("license = \"", env!("CARGO_PKG_LICENSE"), "\""),
        )
}
