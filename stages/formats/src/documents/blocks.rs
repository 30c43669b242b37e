//! A stream cut into blocks at ends of lines, and a block cut into lines.
//!
//! A line ends with `\n`, `\r\n` or a lone `\r`, as in Python's text files (the dataset makers' `for line in file`);
//! not at U+2028, U+0085 or a form feed. A last line without an end counts.

use std::io::{self, Read};

/// Cuts a stream into blocks.
#[derive(Debug)]
pub struct Blocks<R> {
    source: R,
    size: usize,
    longest: usize,
    /// What was read behind the last end of a line.
    rest: Vec<u8>,
    /// The end of a line that was too long is still to come.
    within_line: bool,
    ended: bool,
}

impl<R: Read> Blocks<R> {
    /// Blocks of about `size` bytes; longer where a line is longer. Of a line of more than `longest` bytes one more than that is
    /// given, as the last of its block, and the others are passed over: memory is bounded whatever the stream holds.
    pub fn new(source: R, size: usize, longest: usize) -> Self {
        Self { source, size, longest, rest: Vec::new(), within_line: false, ended: false }
    }

    /// Fills `block` (its old content goes, its room stays) with the next whole lines; false at the end.
    ///
    /// # Errors
    /// Reading failed.
    pub fn next_into(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        block.clear();
        block.append(&mut self.rest);
        if std::mem::take(&mut self.within_line) {
            self.pass_over_line(block)?;
        }
        let mut looked_at = 0;
        loop {
            // So much at a time however long a line is: what lies behind its end stays little.
            self.read_into(block)?;
            if self.ended {
                return Ok(!block.is_empty());
            }
            if let Some(end) = last_end(&block[looked_at..]).map(|end| looked_at + end) {
                self.rest.extend_from_slice(&block[end..]);
                block.truncate(end);
                return Ok(true);
            }
            if block.len() > self.longest {
                // Half of its end may be here.
                self.rest.extend(block.last().filter(|byte| **byte == b'\r'));
                block.truncate(self.longest + 1);
                self.within_line = true;
                return Ok(true);
            }
            // What was looked at is not looked at again, but for its last byte, which may have been half of an end.
            looked_at = block.len().saturating_sub(1);
        }
    }

    /// Reads so many bytes more as a block has, unless the stream ends.
    fn read_into(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        let wanted = block.len() + self.size;
        while !self.ended && block.len() < wanted {
            // Bounded by what is wanted, so that a block's room is not doubled for a few bytes.
            let room = (wanted - block.len()) as u64;
            self.ended = self.source.by_ref().take(room).read_to_end(block)? == 0;
        }
        Ok(())
    }

    /// Leaves in `block` what stands behind the end of the line that it begins in.
    fn pass_over_line(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        loop {
            self.read_into(block)?;
            match end_of_line(block) {
                // It may be half of a `\r\n`.
                Some(end) if end + 1 == block.len() && block[end] == b'\r' && !self.ended => {
                    block.drain(..end);
                }
                Some(end) => {
                    let both = block[end..].starts_with(b"\r\n");
                    block.drain(..end + 1 + usize::from(both));
                    return Ok(());
                }
                None => {
                    block.clear();
                    if self.ended {
                        return Ok(());
                    }
                }
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
                    let mut blocks = Blocks::new(Trickle(text, step), size, 100);
                    let (mut block, mut lines) = (Vec::new(), Vec::new());
                    while blocks.next_into(&mut block).unwrap() {
                        lines.extend(Lines::new(&block).map(<[u8]>::to_vec));
                    }
                    assert_eq!(lines, reference(text), "{:?} size {size} step {step}", text.escape_ascii().to_string());
                }
            }
        }
    }

    #[test]
    fn of_a_line_that_is_too_long_its_beginning_is_given_and_no_more_is_held() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["short", &"x".repeat(1000), "next", &"y".repeat(21), "last", &"z".repeat(500)].join(end);
            for (size, step) in [(1, 1), (3, 2), (7, 100), (64, 5), (300, 300), (4096, 4096)] {
                let mut blocks = Blocks::new(Trickle(text.as_bytes(), step), size, 20);
                let (mut block, mut lines) = (Vec::new(), Vec::new());
                while blocks.next_into(&mut block).unwrap() {
                    lines.extend(Lines::new(&block).map(<[u8]>::to_vec));
                }
                let expected = ["short", "x", "next", "y", "last", "z"];
                assert_eq!(lines.len(), expected.len(), "{end:?} size {size} step {step}");
                for (line, expected) in lines.iter().zip(expected) {
                    let is_long = expected.len() == 1;
                    assert!(
                        if is_long { line.len() > 20 } else { line == expected.as_bytes() },
                        "{end:?} {size} {step}"
                    );
                }
                assert!(block.capacity() <= 64.max(4 * (size + 21)), "{} bytes for {size}", block.capacity());
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
