//! stdout is for data, and this is the only door to it. A reader that went away (`flow runs | head`) is no error.

use std::{
    fmt,
    io::{self, Write},
};

use anyhow::{Context, Result};

/// The device behind stdout refused what was written: found in an error with `downcast_ref`.
#[derive(Debug)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot write to stdout")
    }
}

/// Writes data to stdout, all of it.
///
/// # Errors
/// The device refuses; not when the reader is gone.
pub fn write(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes data that may not be text to stdout, all of it.
///
/// # Errors
/// As [`write`].
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context(Refused),
        _ => Ok(()),
    }
}

/// Writes a line of data to stdout.
///
/// # Errors
/// As [`write`].
pub fn line(text: impl AsRef<str>) -> Result<()> {
    let mut whole = text.as_ref().to_owned();
    whole.push('\n');
    write(&whole)
}

/// Columns with two spaces between, each as wide as its widest cell; columns named in `right` are flushed right.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    use unicode_width::UnicodeWidthStr;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.width()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            if c > 0 {
                line.push_str("  ");
            }
            let space = " ".repeat(widths[c] - cell.width());
            if right.contains(&c) {
                line.push_str(&space);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&space);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_with_wide_characters() {
        let rows = [vec!["名前".to_owned(), "9".to_owned()], vec!["a".to_owned(), "10".to_owned()]];
        assert_eq!(table(&rows, &[1]), "名前   9\na     10\n");
    }
}
