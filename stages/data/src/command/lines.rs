//! Lines of a program's output, put together from what comes in pieces.

/// A longer line is handed on in pieces.
const LONGEST: usize = 16 << 10;

/// What came of a line that has not ended.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes some bytes, and hands on each line that is whole.
    pub fn take(&mut self, mut bytes: &[u8], line: &mut impl FnMut(String)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.0.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.hand_on(line);
        }
        self.0.extend_from_slice(bytes);
        if self.0.len() >= LONGEST {
            self.hand_on(line);
        }
    }

    /// Hands on what has no end.
    pub fn end(&mut self, line: &mut impl FnMut(String)) {
        if !self.0.is_empty() {
            self.hand_on(line);
        }
    }

    /// Of a progress bar that overwrites itself, only the last state.
    fn hand_on(&mut self, line: &mut impl FnMut(String)) {
        let text = String::from_utf8_lossy(&self.0);
        line(text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default().to_owned());
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let text = "one\r\n\n10%\r50%\r100%\nあい\nno end".as_bytes();
        for size in 1..=text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for piece in text.chunks(size) {
                lines.take(piece, &mut |line| found.push(line));
            }
            lines.end(&mut |line| found.push(line));
            assert_eq!(found, ["one", "", "100%", "あい", "no end"]);
        }
        let (mut lines, mut count) = (Lines::default(), 0);
        for _ in 0..100 {
            lines.take(&[b'x'; 1000], &mut |_| count += 1);
        }
        assert!(count >= 5, "a line without end does not grow for ever");
    }
}
