//! The host's side of `wit/plugin.wit`, generated.
//!
//! Values that go to the guest borrow from the message; values that come from it are its own. Only the
//! calls that wait, for the database or for the verdict on a new statement, are asynchronous: the others cost no
//! future.

wasmtime::component::bindgen!({
    world: "handler",
    path: "../wit",
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: {
        "hapax:plugin/sql.query": async | trappable,
        "hapax:plugin/sql.execute": async | trappable,
        "hapax:plugin/sql.defer": async | trappable,
        "hapax:plugin/state.get": async | trappable,
        "hapax:plugin/state.put-if": async | trappable,
        default: trappable,
    },
    exports: { default: async },
});
