//! [`apart`]: two long texts, cut so that what tells them apart can be seen.

/// Two texts, each cut to at most `room` characters around the first place where they differ. `…` is what was cut.
#[must_use]
pub fn apart(from: &str, to: &str, room: usize) -> [String; 2] {
    let longest = from.chars().count().max(to.chars().count());
    let same = from.chars().zip(to.chars()).take_while(|(one, other)| one == other).count();
    // More of what differs than of what is the same, and the whole of a short end.
    let begin = if same < room / 2 { 0 } else { (same - room / 4).min((longest + 1).saturating_sub(room)) };
    [from, to].map(|text| window(text, begin, room))
}

/// The characters from `begin` on.
fn window(text: &str, begin: usize, room: usize) -> String {
    let before = if begin > 0 { "…" } else { "" };
    let rest: Vec<char> = text.chars().skip(begin).collect();
    let room = room - before.chars().count();
    let kept = if rest.len() <= room { rest.len() } else { room - 1 };
    let behind = if kept < rest.len() { "…" } else { "" };
    format!("{before}{}{behind}", rest[..kept].iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::apart;

    #[test]
    fn what_differs_is_seen() {
        assert_eq!(apart("short", "shorter", 12), ["short", "shorter"]);
        assert_eq!(apart("same same same 1", "same same same 2", 12), ["…same same 1", "…same same 2"]);
        let (long, other) = ("a".repeat(100), format!("{}b{}", "a".repeat(50), "c".repeat(49)));
        assert_eq!(apart(&long, &other, 12), ["…aaaaaaaaaa…", "…aaabcccccc…"]);
        assert_eq!(apart("abcdefghijklmnop", "Xbcdefghijklmnop", 12), ["abcdefghijk…", "Xbcdefghijk…"]);
        // One is the beginning of the other.
        assert_eq!(apart(&long, &long[..60], 12), ["…aaaaaaaaaa…", "…aaa"]);
        assert_eq!(
            apart("日本語日本語日本語日本語", "日本語日本語日本語日本人", 8),
            ["…語日本語日本語", "…語日本語日本人"]
        );
    }
}
