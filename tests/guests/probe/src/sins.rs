//! What a handler must not do to its host.

use std::hint::black_box;

pub fn spin() {
    loop {
        black_box(());
    }
}

/// Grows the stack. What happens after the call keeps it from becoming a loop.
#[expect(
    unconditional_recursion,
    reason = "the stack's end is what the test is about"
)]
pub fn recurse(depth: u64) {
    let frame = [depth; 32];
    recurse(black_box(&frame)[0] + 1);
    black_box(&frame);
}

/// Takes memory piece by piece, touches it, and never gives it back.
pub fn allocate(mib: u32) {
    for _ in 0..mib {
        std::mem::forget(black_box(vec![1_u8; 1 << 20]));
    }
}
