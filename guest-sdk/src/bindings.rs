//! The component's imports and its export, generated from the contract in `wit/`.
//!
//! Not a public interface: the modules of this crate are. It is public because the export has to
//! be written out in the handler's own crate.

#![allow(missing_docs)]

wit_bindgen::generate!({
    path: "../wit",
    world: "handler",
    pub_export_macro: true,
    default_bindings_module: "hapax_guest::bindings",
    additional_derives: [PartialEq],
});
