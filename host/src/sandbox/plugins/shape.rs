//! What a component may consist of, looked at before anything is made of it.
//!
//! Reading and compiling cost more than bytes: a level of nesting is a call on a stack, and the time for one function
//! grows faster than its size. The bounds here are far above what toolchains make, Python's interpreter included.
//! Whether the component is valid is for the compiler to say.

use wasmparser::{Parser, Payload};

/// Components and modules within one another.
const MAX_DEPTH: usize = 16;

/// Types that are declared within one another are at most as many as the pairs of bytes that begin one.
const MAX_NESTED_TYPES: usize = 256;

/// Bytes of one function. The interpreter's loops of Python and of JavaScript have some 200 KB.
const MAX_FUNCTION_BYTES: usize = 1 << 20;

/// Functions of all modules together. Those of Python have some 30,000.
const MAX_FUNCTIONS: usize = 250_000;

/// Imports, exports, types, segments, aliases and whatever else is listed in sections, together.
const MAX_ITEMS: usize = 1_000_000;

/// Modules and components in all. More of them would not be instantiated.
const MAX_PARTS: usize = 1_000;

/// What there is too much of, if there is.
pub(super) fn check(component: &[u8]) -> Result<(), String> {
    let (mut depth, mut parts, mut functions, mut items) = (0_usize, 0_usize, 0_usize, 0_usize);
    for payload in Parser::new(0).parse_all(component) {
        // What cannot be read does not compile, and compiling says it better.
        let Ok(payload) = payload else { break };
        match &payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                depth += 1;
                parts += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CodeSectionEntry(body) => {
                functions += 1;
                at_most(
                    "bytes in one function",
                    body.range().len(),
                    MAX_FUNCTION_BYTES,
                )?;
            }
            Payload::ComponentTypeSection(types) => {
                let bytes = component.get(types.range()).unwrap_or_default();
                let nested = bytes.windows(2).filter(|pair| begins_type(pair)).count();
                at_most("types that are declared in types", nested, MAX_NESTED_TYPES)?;
            }
            _ => {}
        }
        items += listed(&payload);
        at_most("components within one another", depth, MAX_DEPTH)?;
        at_most("modules and components", parts, MAX_PARTS)?;
        at_most("functions", functions, MAX_FUNCTIONS)?;
        at_most("imports, exports, types and segments", items, MAX_ITEMS)?;
    }
    Ok(())
}

fn at_most(what: &str, found: usize, most: usize) -> Result<(), String> {
    match found > most {
        true => Err(format!("there are {found} {what}, and {most} may be")),
        false => Ok(()),
    }
}

/// A declaration of a type (1) of a component (0x41) or of an instance (0x42), which hold declarations again. The
/// same bytes may mean something else, which makes the count too large and never too small.
fn begins_type(pair: &[u8]) -> bool {
    matches!(pair, [1, 0x41 | 0x42])
}

fn listed(payload: &Payload) -> usize {
    let count = match payload {
        Payload::TypeSection(section) => section.count(),
        Payload::ImportSection(section) => section.count(),
        Payload::TableSection(section) => section.count(),
        Payload::MemorySection(section) => section.count(),
        Payload::TagSection(section) => section.count(),
        Payload::GlobalSection(section) => section.count(),
        Payload::ExportSection(section) => section.count(),
        Payload::ElementSection(section) => section.count(),
        Payload::DataSection(section) => section.count(),
        Payload::InstanceSection(section) => section.count(),
        Payload::CoreTypeSection(section) => section.count(),
        Payload::ComponentInstanceSection(section) => section.count(),
        Payload::ComponentAliasSection(section) => section.count(),
        Payload::ComponentTypeSection(section) => section.count(),
        Payload::ComponentCanonicalSection(section) => section.count(),
        Payload::ComponentImportSection(section) => section.count(),
        Payload::ComponentExportSection(section) => section.count(),
        _ => 0,
    };
    count as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section of a component.
    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![id];
        let mut length = content.len();
        while length >= 0x80 {
            bytes.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(content);
        bytes
    }

    fn component(content: &[u8]) -> Vec<u8> {
        [b"\0asm\x0d\0\x01\0", content].concat()
    }

    #[track_caller]
    fn refusal(component: &[u8]) -> String {
        check(component).expect_err("it is refused")
    }

    fn nested(levels: usize) -> Vec<u8> {
        (0..levels).fold(component(&[]), |inner, _| component(&section(4, &inner)))
    }

    /// An instance type in an instance type: each is a list of one declaration, of a type.
    fn nested_types(levels: usize) -> Vec<u8> {
        let mut types = vec![1];
        for _ in 0..levels {
            types.extend([0x42, 1, 1]);
        }
        types.extend([0x42, 0]);
        component(&section(7, &types))
    }

    fn module(wat: &str) -> Vec<u8> {
        component(&section(1, &wat::parse_str(wat).expect("well-formed")))
    }

    #[test]
    fn nesting_is_bounded() {
        assert_eq!(check(&nested(MAX_DEPTH)), Ok(()));
        assert!(refusal(&nested(MAX_DEPTH + 1)).contains("within one another"));
        // It ends where the bound is passed.
        assert!(refusal(&nested(5_000)).contains("17 components within one another"));
    }

    /// They are read by recursion: so many of them would end the process.
    #[test]
    fn types_in_types_are_bounded() {
        assert_eq!(check(&nested_types(MAX_NESTED_TYPES - 1)), Ok(()));
        assert!(refusal(&nested_types(1_000_000)).contains("declared in types"));
    }

    #[test]
    fn functions_are_bounded_in_size_and_number() {
        let large = format!("(module (func {}))", "nop ".repeat(MAX_FUNCTION_BYTES));
        assert!(refusal(&module(&large)).contains("bytes in one function"));
        let many = format!("(module {})", "(func)".repeat(MAX_FUNCTIONS + 1));
        assert!(refusal(&module(&many)).contains("250001 functions"));
    }

    #[test]
    fn what_is_listed_and_what_is_in_it_are_bounded() {
        // The number of what follows is what is believed.
        let exports = component(&section(11, &[0x80, 0x80, 0x80, 0x01]));
        assert!(refusal(&exports).contains("imports, exports"));
        let modules = section(1, &wat::parse_str("(module)").expect("well-formed"));
        assert!(
            refusal(&component(&modules.repeat(MAX_PARTS + 1))).contains("modules and components")
        );
    }
}
