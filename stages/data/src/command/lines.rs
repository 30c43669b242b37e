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
            let rest = self.0.split_off(self.0.len() - begun(&self.0));
            self.hand_on(line);
            self.0 = rest;
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

/// How many bytes at the end are the beginning of a character.
fn begun(bytes: &[u8]) -> usize {
    let is_begun = |n: &usize| matches!(str::from_utf8(&bytes[bytes.len() - n..]), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none());
    (1..=bytes.len().min(3)).find(is_begun).unwrap_or(0)
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
        let text = format!("{}x{}", "あ".repeat(10_000), "\u{1f600}".repeat(10_000));
        for size in [1000, 4097, 1 << 14] {
            let (mut lines, mut found) = (Lines::default(), String::new());
            text.as_bytes().chunks(size).for_each(|piece| lines.take(piece, &mut |line| found += &line));
            lines.end(&mut |line| found += &line);
            assert!(found == text, "a long line is not cut inside of a character");
        }
        let (mut lines, mut count) = (Lines::default(), 0);
        for _ in 0..100 {
            lines.take(&[b'x'; 1000], &mut |_| count += 1);
        }
        assert!(count >= 5, "a line without end does not grow for ever");
    }
}
