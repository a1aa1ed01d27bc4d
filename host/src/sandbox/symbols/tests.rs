//! Debug information that was made to hurt whoever reads it. Each form stands for a kind: depth, tables that a few
//! bytes stand for, and what is read once for each of many.

use std::sync::Arc;

use crate::failure::Failure;
use crate::sandbox::tests::component::{encode, guest_module};
use crate::sandbox::tests::{failure, load, run_loaded};

use super::process::is_process;
use super::*;

/// The test that is the process of the tests.
pub(super) const PROCESS: &str = "sandbox::symbols::tests::is_the_process_that_reads";

const REFUSED: &str =
    "(debug information was refused: the process that read it has ended with signal";

/// Started by the others, with a socket; alone it has nothing to do.
#[test]
fn is_the_process_that_reads() {
    if is_process() {
        let _ = reader::serve();
    }
}

/// Debug information in version 4 of its format, little end first, with addresses of 4 bytes.
#[derive(Default)]
struct Dwarf {
    abbrev: Vec<u8>,
    info: Vec<u8>,
    line: Vec<u8>,
}

/// Abbreviations: a unit with children, addresses and a line program; a function with children and addresses; an
/// inlined call with children and nothing else.
const UNIT: u8 = 1;
const FUNCTION: u8 = 2;
const INLINED: u8 = 3;
const ABBREVIATIONS: &[u8] = &[
    UNIT, 0x11, 1, 0x11, 0x01, 0x12, 0x06, 0x10, 0x17, 0, 0, //
    FUNCTION, 0x2e, 1, 0x11, 0x01, 0x12, 0x06, 0, 0, //
    INLINED, 0x1d, 1, 0, 0, //
    0,
];

/// All addresses that a test's code has.
const ADDRESSES: u32 = 0x7fff_ffff;

fn with_length(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("short");
    [&length.to_le_bytes(), content].concat()
}

/// A unit that covers all addresses, with these entries in it.
fn unit(entries: &[u8]) -> Vec<u8> {
    let mut content = vec![4, 0, 0, 0, 0, 0, 4, UNIT, 0, 0, 0, 0];
    content.extend(ADDRESSES.to_le_bytes());
    content.extend([0; 4]);
    content.extend(entries);
    with_length(&content)
}

/// The beginning of a function that covers all addresses.
fn function() -> Vec<u8> {
    let mut entry = vec![FUNCTION, 0, 0, 0, 0];
    entry.extend(ADDRESSES.to_le_bytes());
    entry
}

/// A line program of version 4 for `src/bad.rs` that starts at address 0.
fn line_program(opcodes: &[u8]) -> Vec<u8> {
    // The numbers that opcodes count with, and how many arguments each of the first twelve has.
    let mut tables = vec![1, 1, 1, 0xfb, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0];
    tables.extend(b"src/bad.rs\0\0\0\0\0");
    let length = u32::try_from(tables.len()).expect("short");
    let program = [&[0, 5, 2, 0, 0, 0, 0], opcodes].concat();
    let content = [&[4, 0][..], &length.to_le_bytes(), &tables, &program].concat();
    with_length(&content)
}

impl Dwarf {
    /// A handler that traps, with this debug information.
    fn component(&self) -> Vec<u8> {
        let module = guest_module("", "unreachable");
        let mut wasm = wat::parse_str(module).expect("the module is well-formed");
        let sections = [
            (".debug_abbrev", &self.abbrev),
            (".debug_info", &self.info),
            (".debug_line", &self.line),
        ];
        for (name, bytes) in sections {
            let mut content = vec![u8::try_from(name.len()).expect("short")];
            content.extend(name.as_bytes());
            content.extend(bytes);
            wasm.push(0);
            let mut length = content.len();
            while length >= 0x80 {
                wasm.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            wasm.push(length as u8);
            wasm.extend(content);
        }
        encode(wasm)
    }

    /// How the handler fails, twice in a row.
    async fn traps(&self) -> [Failure; 2] {
        let plugin = load(&self.component());
        [
            failure(run_loaded(&plugin).await),
            failure(run_loaded(&plugin).await),
        ]
    }
}

#[track_caller]
fn assert_refused(failures: &[Failure; 2]) {
    for failure in failures {
        assert_eq!(failure.code, crate::failure::code::TRAP);
        let (functions, refusal) = failure.backtrace.split_once('\n').expect("two lines");
        assert!(functions.contains("handle"), "{}", failure.backtrace);
        assert!(refusal.starts_with(REFUSED), "{}", failure.backtrace);
    }
}

#[tokio::test]
async fn the_place_in_the_sources_is_named() {
    // Six lines on; a row; the address goes to the end; the end.
    let opcodes = [3, 6, 1, 2, 0xff, 0xff, 0xff, 0xff, 7, 0, 1, 1];
    let dwarf = Dwarf {
        abbrev: ABBREVIATIONS.to_vec(),
        info: unit(&[function(), vec![0, 0]].concat()),
        line: line_program(&opcodes),
    };
    for failure in dwarf.traps().await {
        assert!(
            failure.backtrace.contains("src/bad.rs:7:0"),
            "{}",
            failure.backtrace
        );
    }
}

#[tokio::test]
async fn a_million_calls_that_are_inlined_into_one_another_end_no_host() {
    let dwarf = Dwarf {
        abbrev: ABBREVIATIONS.to_vec(),
        info: unit(&[function(), vec![INLINED; 1_000_000]].concat()),
        line: line_program(&[]),
    };
    assert_refused(&dwarf.traps().await);
}

#[tokio::test]
async fn a_line_program_of_millions_of_rows_takes_no_memory_of_the_host() {
    // Each byte is a row of 24.
    let dwarf = Dwarf {
        abbrev: ABBREVIATIONS.to_vec(),
        info: unit(&[function(), vec![0, 0]].concat()),
        line: line_program(&vec![0x20; 48 << 20]),
    };
    assert_refused(&dwarf.traps().await);
}

/// The table of abbreviations is read for each unit.
#[tokio::test]
async fn ten_thousand_units_that_share_a_large_table_take_no_memory_of_the_host() {
    let mut abbrev = ABBREVIATIONS[..ABBREVIATIONS.len() - 1].to_vec();
    for number in 4..40_000_u32 {
        // A number in three bytes of seven bits each, a variable, no children, no attributes.
        let bits = |at: u32| (number >> at) as u8 & 0x7f;
        abbrev.extend([bits(0) | 0x80, bits(7) | 0x80, bits(14), 0x34, 0, 0, 0]);
    }
    abbrev.push(0);
    let dwarf = Dwarf {
        abbrev,
        info: unit(&[0]).repeat(10_000),
        line: line_program(&[]),
    };
    assert_refused(&dwarf.traps().await);
}

/// The names of files are of a form that takes no bytes, and there are as many as a number can say.
#[tokio::test]
async fn a_table_of_files_that_takes_no_bytes_takes_no_memory_of_the_host() {
    let mut tables = vec![1, 1, 1, 0xfb, 14, 1];
    // Directories: one column, the path, of the form "present"; 2^56 of them. The same for files.
    for _ in 0..2 {
        tables.extend([1, 1, 0x19]);
        tables.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1]);
    }
    let length = u32::try_from(tables.len()).expect("short");
    let content = [&[5, 0, 4, 0][..], &length.to_le_bytes(), &tables].concat();
    let dwarf = Dwarf {
        abbrev: ABBREVIATIONS.to_vec(),
        info: unit(&[function(), vec![0, 0]].concat()),
        line: with_length(&content),
    };
    let failures = dwarf.traps().await;
    for failure in failures {
        // Whether a reader counts to the end of it or refuses the form is its own matter.
        assert!(
            failure.backtrace.contains("handle"),
            "{}",
            failure.backtrace
        );
    }
}

#[tokio::test]
async fn more_than_is_kept_is_refused_before_it_is_read() {
    let dwarf = Dwarf {
        line: vec![0; MAX_BYTES + 1],
        ..Dwarf::default()
    };
    let symbols = Symbols::of(&dwarf.component());
    let frame = Frame {
        function: "handle".into(),
        offset: Some(100),
    };
    let text = symbols.backtrace(vec![frame]).await;
    assert!(
        text.starts_with("handle\n(debug information was refused: it has ")
            && text.contains("67108864 are read"),
        "{text}"
    );
}

#[tokio::test]
async fn a_process_that_has_answered_enough_makes_room_for_another() {
    let modules: Arc<[Module]> = Arc::new([]);
    let mut reading = Reading {
        modules,
        process: None,
        refused: None,
    };
    let frame = Frame {
        function: "handle".into(),
        offset: None,
    };
    for _ in 0..2_100 {
        assert_eq!(reading.backtrace(std::slice::from_ref(&frame)), "handle");
    }
}

/// Names of symbols are shown as they are: those who undo their mangling recurse as deep as a name says.
#[tokio::test]
async fn a_name_is_cut_and_not_unmangled() {
    let long = "x".repeat(1 << 20);
    let mangled = format!("_Z{}", "PK".repeat(100));
    let body = format!("(call ${mangled}) unreachable");
    let functions = format!("(func ${mangled} (call ${long}))\n(func ${long} unreachable)");
    let module = guest_module(&functions, &body);
    let plugin = load(&encode(wat::parse_str(module).expect("well-formed")));
    let failure = failure(run_loaded(&plugin).await);
    let lines: Vec<_> = failure.backtrace.lines().collect();
    assert!(lines[0].starts_with("xxx") && lines[0].len() < 300);
    assert_eq!(lines[1], mangled);
}
