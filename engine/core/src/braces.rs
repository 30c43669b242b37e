//! Brace expansion, as shells do it: one text that stands for several.
//!
//! `{a,b}` is each of its parts, `{0..13}` counts (also down, and `{0..10..5}` in steps), `{00..13}` counts with as
//! many digits, `{a..e}` walks letters. Groups nest and multiply, the rightmost varies fastest. Braces that hold
//! neither a comma nor two dots (`{out}`, `{in.model}`, `{}`) mean themselves, and so do `\{` and `\}`.

/// More texts than this are a mistake, and would not fit in memory if they multiply.
const MAX_TEXTS: usize = 1_000_000;

/// Deeper nesting than this is a mistake, and would exhaust the stack.
const MAX_DEPTH: usize = 64;

/// The texts that `text` stands for, in order; itself alone if it has no braces to expand.
///
/// # Errors
/// A brace is never closed, a range has no ends that can be counted between, or there are more than a million texts.
pub fn expand_braces(text: &str) -> Result<Vec<String>, String> {
    if !text.contains(['{', '\\']) {
        return Ok(vec![text.to_owned()]);
    }
    let mut done = vec![String::new()];
    let mut rest = text;
    while let Some(at) = rest.find(['{', '\\']) {
        append(&mut done, &[&rest[..at]])?;
        rest = &rest[at..];
        if rest.starts_with('\\') {
            let escaped = rest.starts_with("\\{") || rest.starts_with("\\}");
            let (literal, next) = if escaped { (&rest[1..2], &rest[2..]) } else { (&rest[..1], &rest[1..]) };
            append(&mut done, &[literal])?;
            rest = next;
            continue;
        }
        let end = closing(rest)?;
        let (inner, next) = (&rest[1..end], &rest[end + 1..]);
        let choices = alternatives(inner)?;
        append(&mut done, &choices.iter().map(String::as_str).collect::<Vec<_>>())?;
        rest = next;
    }
    append(&mut done, &[rest])?;
    Ok(done)
}

/// Each text so far, with each of `choices` after it.
fn append(done: &mut Vec<String>, choices: &[&str]) -> Result<(), String> {
    if let [choice] = choices {
        done.iter_mut().for_each(|text| text.push_str(choice));
        return Ok(());
    }
    if done.len().saturating_mul(choices.len()) > MAX_TEXTS {
        return Err(format!("the braces stand for more than {MAX_TEXTS} texts"));
    }
    *done = done.iter().flat_map(|text| choices.iter().map(move |choice| format!("{text}{choice}"))).collect();
    Ok(())
}

/// Where the brace that `text` begins with is closed.
fn closing(text: &str) -> Result<usize, String> {
    let mut depth = 0usize;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' if depth == MAX_DEPTH => return Err(format!("braces stand in each other more than {MAX_DEPTH} deep")),
            b'{' => depth += 1,
            b'}' if depth == 1 => return Ok(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    Err(format!("the `{{` of `{text}` is never closed: write `\\{{` to mean it"))
}

/// What a pair of braces around `inner` stands for.
fn alternatives(inner: &str) -> Result<Vec<String>, String> {
    let parts = split_commas(inner);
    if parts.len() > 1 {
        let mut texts = Vec::new();
        for part in parts {
            texts.extend(expand_braces(part)?);
        }
        return Ok(texts);
    }
    if !inner.contains("..") || inner.contains('{') {
        return Ok(expand_braces(inner)?.into_iter().map(|text| format!("{{{text}}}")).collect());
    }
    let bad = || format!("`{{{inner}}}` is not a range: write `{{0..13}}`, `{{00..13}}`, `{{0..10..5}}` or `{{a..e}}`");
    let ends: Vec<&str> = inner.split("..").collect();
    let (first, last, step) = match ends[..] {
        [first, last] => (first, last, 1),
        [first, last, step] => (first, last, step.parse::<u64>().ok().filter(|step| *step > 0).ok_or_else(bad)?),
        _ => return Err(bad()),
    };
    let letter = |text: &str| match text.as_bytes() {
        [byte] if byte.is_ascii_alphabetic() => Some(i64::from(*byte)),
        _ => None,
    };
    if let (Some(from), Some(to)) = (letter(first), letter(last)) {
        return Ok(count(from, to, step)?.into_iter().map(|n| char::from(n as u8).to_string()).collect());
    }
    let number = |text: &str| text.parse::<i64>().map_err(|_| bad());
    let padded = |text: &str| text.trim_start_matches('-').starts_with('0') && text.trim_start_matches('-').len() > 1;
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    Ok(count(number(first)?, number(last)?, step)?.into_iter().map(|n| format!("{n:0width$}")).collect())
}

/// The numbers between two ends, both included.
fn count(from: i64, to: i64, step: u64) -> Result<Vec<i64>, String> {
    let steps = from.abs_diff(to) / step;
    if steps >= MAX_TEXTS as u64 {
        return Err(format!("`{{{from}..{to}}}` stands for more than {MAX_TEXTS} texts"));
    }
    let direction = if from <= to { 1 } else { -1 };
    Ok((0..=steps).map(|i| (i128::from(from) + direction * i128::from(i) * i128::from(step)) as i64).collect())
}

/// Splits at the commas outside of inner braces.
fn split_commas(inner: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start, mut escaped) = (Vec::new(), 0usize, 0, false);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> String {
        expand_braces(text).unwrap().join(" ")
    }

    #[test]
    fn groups_count_choose_nest_and_multiply() {
        assert_eq!(expanded("plain"), "plain");
        assert_eq!(expanded("train_{0..3}.gz?x=y"), "train_0.gz?x=y train_1.gz?x=y train_2.gz?x=y train_3.gz?x=y");
        assert_eq!(expanded("{08..11}"), "08 09 10 11");
        assert_eq!(expanded("{3..1}"), "3 2 1");
        assert_eq!(expanded("{-1..1}"), "-1 0 1");
        assert_eq!(expanded("{0..10..5}"), "0 5 10");
        assert_eq!(expanded("{a..c}"), "a b c");
        assert_eq!(expanded("x{a,b{1,2},}"), "xa xb1 xb2 x");
        assert_eq!(expanded("{a,b}/{0..1}"), "a/0 a/1 b/0 b/1");
        assert_eq!(expanded("日本{語,人}"), "日本語 日本人");
    }

    #[test]
    fn braces_that_hold_no_choice_mean_themselves() {
        assert_eq!(expanded("{in.model} > {out}/{}"), "{in.model} > {out}/{}");
        assert_eq!(expanded(r"\{a,b\} c\d"), r"{a,b} c\d");
        assert_eq!(expanded("{x{a,b}}"), "{xa} {xb}");
    }

    #[test]
    fn mistakes_are_said_and_too_many_texts_refused() {
        for bad in ["a{b", "{a,{b}", "{0..}", "{0..x}", "{1..2..0}", "{1..2..3..4}", "{ab..cd}"] {
            assert!(expand_braces(bad).is_err(), "{bad}");
        }
        for many in ["{0..1000000}", "{0..9223372036854775807}", "{0..999}{0..999}{0..9}"] {
            assert!(expand_braces(many).unwrap_err().contains("more than"), "{many}");
        }
        assert!(expand_braces(&("{".repeat(100_000) + &"}".repeat(100_000))).unwrap_err().contains("deep"));
        assert_eq!(expand_braces("{-9223372036854775808..9223372036854775807..9223372036854775807}").unwrap().len(), 3);
    }
}
