//! Ages and sizes, as they are typed.

/// `30d`, `12h`, `90m`, `10s`.
///
/// # Errors
/// It is no age; what to write.
pub fn age(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || "write a number and one of s, m, h, d, w: 30d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        'd' => 86_400.0,
        'w' => 7.0 * 86_400.0,
        _ => return Err(wrong()),
    };
    let number: f64 = text[..text.len() - unit.len_utf8()].trim().parse().map_err(|_| wrong())?;
    std::time::Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// `500G`, `1.5T`, `100MB`, `1GiB`: powers of 1000, of 1024 with `i`.
///
/// # Errors
/// It is no size; what to write.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || "write a number and a unit: 500G, 1.5T, 64GiB".to_owned();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number: f64 = text[..at].trim().parse().map_err(|_| wrong())?;
    let unit = text[at..].to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (prefix, base) = unit.strip_suffix('i').map_or((unit, 1000f64), |prefix| (prefix, 1024.0));
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == prefix).ok_or_else(wrong)?;
    let size = number * base.powi(power as i32);
    if (0.0..=u64::MAX as f64).contains(&size) { Ok(size as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes() {
        assert_eq!(age("30d").unwrap().as_secs(), 30 * 86_400);
        assert_eq!(age("1.5h").unwrap().as_secs(), 5400);
        for bad in ["", "d", "30", "-1d", "3é", "NaNd"] {
            assert!(age(bad).is_err(), "{bad}");
        }
        assert_eq!(
            ["500G", "1.5TB", "1GiB", "7", "2k"].map(|t| size(t).unwrap()),
            [500_000_000_000, 1_500_000_000_000, 1 << 30, 7, 2000]
        );
        for bad in ["", "G", "5X", "-5G", "1e400G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
