//! What a component may import: the interfaces that are linked, and no other. The list of imports is the
//! proof that a handler reaches the world only through its transaction.

use std::fmt::Write as _;

use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use super::{imports, wasi};

/// An interface that a component imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// `wasi:cli/stderr@0.2.6`
    pub name: String,
    /// Its functions, which are what a handler can do with it.
    pub functions: Vec<String>,
}

/// The component's imports, or a text that shows those that are not granted beside what there is.
pub(super) fn imports(engine: &Engine, component: &Component) -> Result<Vec<Import>, String> {
    let mut known = Vec::new();
    let mut foreign = Vec::new();
    for (name, import) in component.component_type().imports(engine) {
        let functions = match import.ty {
            ComponentItem::ComponentInstance(instance) => instance
                .exports(engine)
                .filter(|(_, export)| matches!(export.ty, ComponentItem::ComponentFunc(_)))
                .map(|(function, _)| function.to_owned())
                .collect(),
            _ => Vec::new(),
        };
        let list = if is_granted(name) {
            &mut known
        } else {
            &mut foreign
        };
        list.push(Import {
            name: name.to_owned(),
            functions,
        });
    }
    if foreign.is_empty() {
        Ok(known)
    } else {
        Err(difference(&known, &foreign))
    }
}

/// Versions are the linker's business: it accepts those that are compatible.
fn is_granted(name: &str) -> bool {
    let interface = name
        .split_once('@')
        .map_or(name, |(interface, _)| interface);
    imports::INTERFACES.contains(&interface) || wasi::INTERFACES.contains(&interface)
}

fn difference(known: &[Import], foreign: &[Import]) -> String {
    let mut text = String::from("  it imports and may not:\n");
    for (index, import) in foreign.iter().enumerate() {
        let _ = write!(text, "    - {}", import.name);
        if !import.functions.is_empty() {
            let _ = write!(text, " ({})", import.functions.join(", "));
        }
        text.push('\n');
        // Interfaces of one family follow one another, and one answer serves them all.
        let next = foreign.get(index + 1).and_then(|next| help(&next.name));
        if let Some(help) = help(&import.name)
            && next != Some(help)
        {
            let _ = writeln!(text, "        {help}");
        }
    }
    if !known.is_empty() {
        text.push_str("  it imports and may:\n");
    }
    for import in known {
        let _ = writeln!(text, "    + {}", import.name);
    }
    text.push_str(
        "  no line of a configuration grants another interface\n  there is: hapax:plugin/{context, sql, state, outbox, log}, and of WASI 0.2, without anything \
         behind it: cli, clocks, filesystem, io, random, sockets",
    );
    text
}

fn help(name: &str) -> Option<&'static str> {
    if name.starts_with("wasi:http/") {
        Some(
            "a handler has no network: publish to a service that calls out, with a line in the consumer like \
             `targets = { NAME = { exchange = \"\", routing-key = \"QUEUE\" } }`",
        )
    } else if name.starts_with("wasi:keyvalue/") {
        Some(
            "use hapax:plugin/state, which commits with the message and needs no line in the consumer",
        )
    } else if name.starts_with("wasi:config/") {
        Some(
            "use hapax:plugin/context.config, with a line in the consumer like `config = { NAME = \"value\" }`",
        )
    } else if name.starts_with("wasi:messaging/") {
        Some(
            "use hapax:plugin/outbox, which sends after the commit, with a line in the consumer like \
             `targets = { NAME = { exchange = \"\", routing-key = \"QUEUE\" } }`",
        )
    } else if name.starts_with("hapax:plugin/") {
        Some("this host does not know it; the component was built for a newer one")
    } else if name == "wasi_snapshot_preview1" || name.starts_with("wasi_") {
        Some("this is WASI 0.1; build for wasm32-wasip2")
    } else {
        None
    }
}
