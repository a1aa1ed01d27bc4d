//! Text that a guest produced, made fit for tables and terminals: valid UTF-8, without NUL, bounded.

/// What is kept of a reason or an error.
pub(super) const MAX_TEXT_BYTES: usize = 4 * 1024;

/// Valid text of at most about `limit` bytes; what is cut off is marked with an ellipsis.
pub(super) fn bounded(bytes: &[u8], limit: usize) -> String {
    let kept = &bytes[..bytes.len().min(limit)];
    let mut text = String::new();
    for chunk in kept.utf8_chunks() {
        text.push_str(chunk.valid());
        // A character that the limit cut in half is not an invalid one.
        let cut = kept.len() < bytes.len()
            && chunk.invalid().as_ptr_range().end == kept.as_ptr_range().end;
        if !chunk.invalid().is_empty() && !cut {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    if kept.len() < bytes.len() {
        text.push('…');
    }
    without_nul(text)
}

/// Databases refuse NUL in text.
pub(super) fn without_nul(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}
