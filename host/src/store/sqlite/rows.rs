//! Statements over many rows in few distinct shapes, so that the statement cache meets them again.

use std::ops::Range;

/// Splits `count` rows into pieces of 64, 16, 4 and 1.
pub(super) fn pieces(count: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let size = [64, 16, 4, 1]
            .into_iter()
            .find(|size| start + size <= count)?;
        start += size;
        Some(start - size..start)
    })
}

/// `(?, ?), (?, ?)` for two rows of two columns.
pub(super) fn values(rows: usize, columns: usize) -> String {
    let row = format!("({})", marks(columns));
    vec![row; rows].join(", ")
}

/// `?, ?, ?` for three.
pub(super) fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_cover_every_row_once_in_order() {
        for count in 0..200 {
            let covered: Vec<usize> = pieces(count).flatten().collect();
            assert_eq!(covered, (0..count).collect::<Vec<_>>());
        }
        assert_eq!(
            pieces(150).map(|piece| piece.len()).collect::<Vec<_>>(),
            [64, 64, 16, 4, 1, 1]
        );
    }
}
