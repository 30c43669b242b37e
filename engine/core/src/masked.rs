//! [`masked`]: a text without the secrets in it.

use crate::secret::without_tokens;

/// The text as it is, but of its URLs neither user nor password nor query (a signed URL is a key), and without tokens that
/// are known by how they look.
#[must_use]
pub fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        let ends = |c: char| c.is_whitespace() || "\"'`)<>]}".contains(c);
        let (url, behind) = after.split_at(after.find(ends).unwrap_or(after.len()));
        let (place, query) = url.split_once('?').map_or((url, ""), |(place, _)| (place, "?***"));
        let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let (user, host) = host.rsplit_once('@').map_or(("", host), |(_, host)| ("***@", host));
        out.extend([before, "://", user, host, path, query]);
        rest = behind;
    }
    without_tokens(out + rest)
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn urls_lose_what_opens_them() {
        for (text, shown) in [
            ("nothing to hide: a@b?c", "nothing to hide: a@b?c"),
            ("GET https://host:80/a/b@c, again", "GET https://host:80/a/b@c, again"),
            ("x=[\"http://me:secret@h/a\"]", "x=[\"http://***@h/a\"]"),
            (
                "error for url (https://s@e@h/a?X-Signature=s): <U>http://b/c?sig=s</U> why?",
                "error for url (https://***@h/a?***): <U>http://b/c?***</U> why?",
            ),
            ("a://", "a://"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }
}
