//! Fields of protocol buffers, as far as the logs of TensorBoard and of Weights & Biases need them: written, not read.

/// A length-delimited field: bytes, or a message that is written already.
#[must_use]
pub fn message(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = varint(tag(number, 2));
    bytes.extend(varint(content.len() as u64));
    bytes.extend_from_slice(content);
    bytes
}

/// A string.
#[must_use]
pub fn text(number: u8, content: &str) -> Vec<u8> {
    message(number, content.as_bytes())
}

/// An integer.
#[must_use]
pub fn number(number: u8, value: u64) -> Vec<u8> {
    [varint(tag(number, 0)), varint(value)].concat()
}

/// A `double`.
#[must_use]
pub fn double(number: u8, value: f64) -> Vec<u8> {
    [&varint(tag(number, 1))[..], &value.to_le_bytes()].concat()
}

/// A `float`.
#[must_use]
pub fn float(number: u8, value: f32) -> Vec<u8> {
    [&varint(tag(number, 5))[..], &value.to_le_bytes()].concat()
}

fn tag(number: u8, wire_type: u64) -> u64 {
    u64::from(number) << 3 | wire_type
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the encoding's own description, and a field beyond 15.
    #[test]
    fn fields_are_as_the_encoding_says() {
        assert_eq!(number(1, 150), [0x08, 0x96, 0x01]);
        assert_eq!(text(2, "testing"), *b"\x12\x07testing");
        assert_eq!(message(3, &number(1, 150)), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        assert_eq!(number(16, 1), [0x80, 0x01, 0x01]);
        assert_eq!(float(2, 1.5), [0x15, 0, 0, 0xc0, 0x3f]);
        assert_eq!(double(1, 1.5), [0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f]);
    }
}
