//! A stream cut into blocks at ends of lines, and a block cut into lines.
//!
//! A line ends with `\n`, `\r\n` or a lone `\r`, as in Python's text files (the dataset makers' `for line in file`);
//! not at U+2028, U+0085 or a form feed. A last line without an end counts.

use std::io::{self, Read};

/// A longer line is not a document but a file that has no lines.
const MAX_LINE: usize = 1 << 30;

/// Cuts a stream into blocks.
#[derive(Debug)]
pub struct Blocks<R> {
    source: R,
    size: usize,
    /// What was read behind the last end of a line.
    rest: Vec<u8>,
    ended: bool,
}

impl<R: Read> Blocks<R> {
    /// Blocks of about `size` bytes; longer where a line is longer.
    pub fn new(source: R, size: usize) -> Self {
        Self { source, size, rest: Vec::new(), ended: false }
    }

    /// Fills `block` (its old content goes, its room stays) with the next whole lines; false at the end.
    ///
    /// # Errors
    /// Reading failed, or a line is longer than 1 GiB.
    pub fn next_into(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        block.clear();
        block.append(&mut self.rest);
        loop {
            // So much at a time however long a line is: what lies behind its end stays little. What was looked at is not
            // looked at again, but for its last byte, which may have been half of an end.
            let known = block.len();
            while !self.ended && block.len() < known + self.size {
                // Bounded by what is wanted, so that a block's room is not doubled for a few bytes.
                let room = (known + self.size - block.len()) as u64;
                self.ended = self.source.by_ref().take(room).read_to_end(block)? == 0;
            }
            if self.ended {
                return Ok(!block.is_empty());
            }
            let looked_at = known.saturating_sub(1);
            if let Some(end) = last_end(&block[looked_at..]).map(|end| looked_at + end) {
                self.rest.extend_from_slice(&block[end..]);
                block.truncate(end);
                return Ok(true);
            }
            if block.len() > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a line is longer than 1 GiB: this is no JSONL",
                ));
            }
        }
    }
}

/// Behind the last end of a line that is surely whole: a `\r` at the very end may be half of a `\r\n`.
fn last_end(block: &[u8]) -> Option<usize> {
    let newline = block.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    newline.or_else(|| block[..block.len() - 1].iter().rposition(|byte| *byte == b'\r').map(|at| at + 1))
}

/// The lines of a block, without their ends.
#[derive(Clone, Debug)]
pub struct Lines<'a>(&'a [u8]);

impl<'a> Lines<'a> {
    /// The lines of `block`.
    #[must_use]
    pub fn new(block: &'a [u8]) -> Self {
        Self(block)
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let Some(end) = end_of_line(self.0) else { return Some(std::mem::take(&mut self.0)) };
        let line = &self.0[..end];
        let both = self.0[end..].starts_with(b"\r\n");
        self.0 = &self.0[end + 1 + usize::from(both)..];
        Some(line)
    }
}

/// The first `\n` or `\r`: eight bytes at a time.
fn end_of_line(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut chunks = bytes.chunks_exact(8);
    for (i, chunk) in chunks.by_ref().enumerate() {
        let word = u64::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7]]);
        let hit = zero(word ^ (ONES * u64::from(b'\n'))) | zero(word ^ (ONES * u64::from(b'\r')));
        if hit != 0 {
            return Some(8 * i + hit.trailing_zeros() as usize / 8);
        }
    }
    let tail = chunks.remainder();
    tail.iter().position(|byte| matches!(byte, b'\n' | b'\r')).map(|at| bytes.len() - tail.len() + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python's universal newlines do, said plainly.
    fn reference(text: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = vec![Vec::new()];
        let mut i = 0;
        while i < text.len() {
            match text[i] {
                b'\r' if text.get(i + 1) == Some(&b'\n') => {
                    i += 1;
                    lines.push(Vec::new());
                }
                b'\r' | b'\n' => lines.push(Vec::new()),
                byte => lines.last_mut().unwrap().push(byte),
            }
            i += 1;
        }
        if lines.last().unwrap().is_empty() {
            lines.pop();
        }
        lines
    }

    #[test]
    fn lines_are_the_same_wherever_blocks_and_reads_end() {
        let texts: [&[u8]; 8] = [
            b"",
            b"one",
            b"one\n",
            b"one\r\ntwo\r\n",
            b"\n\n\r\r\n\n\r",
            b"a\rb\rc\rlonger than a block\rd",
            "あ\u{2028}い\u{85}う\u{c}え\nお".as_bytes(),
            b"123456789\n12345678\n1234567\n123456\r\n12345\r1234",
        ];
        for text in texts {
            for size in 1..12 {
                for step in [1, 2, 3, 100] {
                    let mut blocks = Blocks::new(Trickle(text, step), size);
                    let (mut block, mut lines) = (Vec::new(), Vec::new());
                    while blocks.next_into(&mut block).unwrap() {
                        lines.extend(Lines::new(&block).map(<[u8]>::to_vec));
                    }
                    assert_eq!(lines, reference(text), "{:?} size {size} step {step}", text.escape_ascii().to_string());
                }
            }
        }
    }

    /// Gives few bytes at a time.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(buffer.len()).min(self.0.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }
}
