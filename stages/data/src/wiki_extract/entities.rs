//! Characters that are written as `&name;` or `&#number;`.

use quick_xml::escape::resolve_html5_entity;

/// Text with its entities decoded.
pub fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let (decoded, length) = entity(&rest[at..]).unwrap_or_else(|| ("&".into(), 1));
        out.push_str(&decoded);
        rest = &rest[at + length..];
    }
    out + rest
}

/// What an entity stands for, and how long it is.
pub fn entity(text: &str) -> Option<(String, usize)> {
    let length = text.bytes().take(34).position(|byte| byte == b';')?;
    let name = &text[1..length];
    let decoded = match name.strip_prefix('#') {
        Some(number) => {
            let hexadecimal = number.strip_prefix(['x', 'X']);
            let code = hexadecimal.map_or_else(|| number.parse(), |digits| u32::from_str_radix(digits, 16)).ok()?;
            char::from_u32(code).filter(|c| !c.is_control() || *c == '\n' || *c == '\t')?.to_string()
        }
        None => resolve_html5_entity(name)?.to_owned(),
    };
    Some((decoded, length + 1))
}
