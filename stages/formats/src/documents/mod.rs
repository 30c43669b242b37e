//! Documents as JSON lines: blocks of a stream that end where lines end, lines as Python's text files have them, and
//! the text that stands under a key.

mod blocks;
mod json;

pub use blocks::{Blocks, Lines};
pub use json::{BLANK, BYTE_ORDER_MARK, BadLine, HALF_SURROGATE, INVALID_UTF8, Text, raw_value, replace_text, texts};
