//! The guest that is written by hand, as a component.

use std::path::{Path, PathBuf};

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
