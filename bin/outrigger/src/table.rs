//! Aligned text tables.

/// Lays out rows under headings; a column whose heading starts with `>` is right-aligned.
#[must_use]
pub(crate) fn render(headings: &[&str], rows: &[Vec<String>]) -> String {
    let right: Vec<bool> = headings.iter().map(|h| h.starts_with('>')).collect();
    let headings: Vec<String> = headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
    let width = |column: usize| {
        rows.iter()
            .chain([&headings])
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut out = String::new();
    for row in [&headings].into_iter().chain(rows) {
        let mut line = String::new();
        for ((cell, &width), &right) in row.iter().zip(&widths).zip(&right) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            if right {
                line.push_str(&format!("{cell:>width$}"));
            } else {
                line.push_str(&format!("{cell:<width$}"));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_as_asked() {
        let rows = vec![vec!["hello".into(), "64".into()], vec!["x".into(), "1024".into()]];
        assert_eq!(render(&["NAME", ">MEM"], &rows), "NAME    MEM\nhello    64\nx      1024\n");
    }
}
