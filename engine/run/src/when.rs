//! `when`: whether a stage is part of a run. What stands there after parameters are filled in is a truth, or a
//! comparison of words and numbers: `"${steps} > 0 and ${lang} == ja"`.

/// Whether the expression holds.
///
/// `or` binds weakest, then `and`, then `not`, then one of `==`, `!=`, `<=`, `>=`, `<`, `>`. Two numbers are compared as
/// numbers, anything else as text; a word alone is `true` or `false`.
///
/// # Errors
/// It is no expression: why.
pub fn holds(text: &str) -> Result<bool, String> {
    // All parts are looked at, so that what is wrong in one shows also where another decides.
    let parts = |word: &str| split(text, word);
    if let Some(any) = parts("or") {
        return Ok(any.into_iter().map(holds).collect::<Result<Vec<_>, _>>()?.contains(&true));
    }
    if let Some(all) = parts("and") {
        return Ok(!all.into_iter().map(holds).collect::<Result<Vec<_>, _>>()?.contains(&false));
    }
    let text = text.trim();
    if let Some(rest) =
        text.strip_prefix("not ").or_else(|| text.strip_prefix('!').filter(|rest| !rest.starts_with('=')))
    {
        return holds(rest).map(|truth| !truth);
    }
    for operator in ["==", "!=", "<=", ">=", "<", ">"] {
        if let Some((left, right)) = text.split_once(operator) {
            return compare(unquoted(left), operator, unquoted(right))
                .ok_or_else(|| format!("`{text}` does not compare two numbers"));
        }
    }
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false, nor a comparison such as `${{n}} > 0`")),
    }
}

/// The parts between a word, if it is there.
fn split<'a>(text: &'a str, word: &str) -> Option<Vec<&'a str>> {
    let parts: Vec<&str> = text.split(&format!(" {word} ")).collect();
    (parts.len() > 1).then_some(parts)
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(text)
}

/// Nothing if texts have no such order.
fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let numbers = || Some((left.parse::<f64>().ok()?, right.parse::<f64>().ok()?));
    let order = match numbers() {
        Some((left, right)) => left.partial_cmp(&right),
        None if operator.starts_with(['<', '>']) => return None,
        None => Some(left.cmp(right)),
    };
    Some(match operator {
        "==" => order.is_some_and(std::cmp::Ordering::is_eq),
        "!=" => order.is_none_or(std::cmp::Ordering::is_ne),
        "<=" => order.is_some_and(std::cmp::Ordering::is_le),
        ">=" => order.is_some_and(std::cmp::Ordering::is_ge),
        "<" => order.is_some_and(std::cmp::Ordering::is_lt),
        _ => order.is_some_and(std::cmp::Ordering::is_gt),
    })
}

#[cfg(test)]
mod tests {
    use super::holds;

    #[test]
    fn truths_and_comparisons() {
        for text in [
            "true",
            "not false",
            "!false",
            "1 < 2",
            "10 > 9",
            "1e-3 == 0.001",
            "ja == ja",
            "'ja' != \"en\"",
            "false or 1 <= 1",
            "true and 2 >= 1",
            "false and true or true",
            " == ",
            "not 1 == 2",
        ] {
            assert_eq!(holds(text), Ok(true), "{text}");
        }
        for text in ["false", "1 > 2", "true and false", "ja == en", "!true"] {
            assert_eq!(holds(text), Ok(false), "{text}");
        }
        for text in ["", "yes", "1", "a < b", "true or maybe", "false and maybe"] {
            assert!(holds(text).is_err(), "{text}");
        }
        assert_eq!(holds("true and 3 >> 3").unwrap_err(), "`3 >> 3` does not compare two numbers");
    }
}
