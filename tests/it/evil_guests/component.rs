//! Guests that no compiler makes, as components.

use std::path::{Path, PathBuf};

use anyhow::Context;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Joins the module with the contract, and returns where the component is.
pub fn of_table_bomb(dir: &Path) -> anyhow::Result<PathBuf> {
    let text = Path::new(HERE).join("../tests/guests/table-bomb/handler.wat");
    let mut module = wat::parse_file(text)?;
    let mut resolve = Resolve::new();
    let (package, _) = resolve.push_path(Path::new(HERE).join("../wit"))?;
    let world = resolve.select_world(&[package], Some("handler"))?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    let component = ComponentEncoder::default().module(&module)?.encode()?;
    let file = dir.join("table_bomb.wasm");
    std::fs::write(&file, component)?;
    Ok(file)
}

/// A guest whose debug information is a million calls that are inlined into one another, a byte each.
pub fn with_hostile_debug_information(dir: &Path, guest: &Path) -> anyhow::Result<PathBuf> {
    const CORE_MODULE: u8 = 1;
    const ABBREVIATIONS: &[u8] = &[
        1, 0x11, 1, 0x11, 0x01, 0x12, 0x06, 0, 0, // A unit with children and addresses.
        2, 0x2e, 1, 0x11, 0x01, 0x12, 0x06, 0, 0, // A function with the same.
        3, 0x1d, 1, 0, 0, // An inlined call with children.
        0,
    ];
    let addresses = [&[0; 4][..], &0x7fff_ffff_u32.to_le_bytes()].concat();
    let mut unit = vec![4, 0, 0, 0, 0, 0, 4];
    for entry in [1, 2] {
        unit.push(entry);
        unit.extend(&addresses);
    }
    unit.extend(vec![3; 1_000_000]);
    let length = u32::try_from(unit.len())?.to_le_bytes();
    let info = [&length[..], &unit].concat();

    let guest = std::fs::read(guest)?;
    let mut made = guest[..8].to_vec();
    let mut at = 8;
    while at < guest.len() {
        let id = guest[at];
        at += 1;
        let length = read_length(&guest, &mut at)?;
        let mut content = guest[at..at + length].to_vec();
        at += length;
        if id == CORE_MODULE {
            // Of two sections with one name the last one counts.
            for (name, bytes) in [(".debug_abbrev", ABBREVIATIONS), (".debug_info", &info)] {
                let mut section = vec![u8::try_from(name.len())?];
                section.extend(name.as_bytes());
                section.extend(bytes);
                content.push(0);
                write_length(&mut content, section.len());
                content.extend(section);
            }
        }
        made.push(id);
        write_length(&mut made, content.len());
        made.extend(content);
    }
    let file = dir.join("hostile_debug_information.wasm");
    std::fs::write(&file, made)?;
    Ok(file)
}

/// Lengths have seven bits in a byte.
fn read_length(bytes: &[u8], at: &mut usize) -> anyhow::Result<usize> {
    let mut length = 0;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.get(*at).context("cut off")?;
        *at += 1;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    anyhow::bail!("a length of more than 32 bits")
}

fn write_length(to: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        to.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    to.push(length as u8);
}
