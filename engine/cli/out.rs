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
pub fn table<R: AsRef<[String]>>(rows: &[R], right: &[usize]) -> String {
    use unicode_width::UnicodeWidthStr;
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (c, cell) in row.as_ref().iter().enumerate() {
            match widths.get_mut(c) {
                Some(width) => *width = cell.width().max(*width),
                None => widths.push(cell.width()),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        for (c, cell) in row.as_ref().iter().enumerate() {
            if c > 0 {
                text.push_str("  ");
            }
            let space = std::iter::repeat_n(' ', widths[c] - cell.width());
            if right.contains(&c) {
                text.extend(space);
                text.push_str(cell);
            } else {
                text.push_str(cell);
                text.extend(space);
            }
        }
        text.truncate(text.trim_end_matches([' ', '\t']).len());
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
