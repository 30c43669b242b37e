//! Numbers for people: durations, sizes, rates, counts. Also the width of text on a screen.

use flow_core::{Civil, Unit};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns for why a node runs, where it is one part of a line; `flow why` tells all of it.
pub const WHY: usize = 90;

/// A duration: `0.42 s`, `12 s`, `3 min 04 s`, `2 h 05 min`, `3 d 4 h`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        _ if seconds < 0.0995 => format!("{:.0} ms", seconds.max(0.0) * 1e3),
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A duration that moves on a screen, in whole seconds: `0 s`, `3 min 04 s`.
pub fn moving(seconds: f64) -> String {
    if seconds < 59.5 { format!("{:.0} s", seconds.max(0.0)) } else { duration(seconds) }
}

/// A time, seconds since 1970, as `2026-01-31 23:59:59 UTC`.
pub fn clock(time: f64) -> String {
    let Civil { year, month, day, hour, minute, second } = Civil::of(time);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A size in bytes: `512 B`, `1.5 kB`, `12.3 GB` (powers of 1000).
pub fn bytes(size: u64) -> String {
    if size < 1000 { format!("{size} B") } else { format!("{}B", scaled(size as f64)) }
}

/// `1.5 k`, `12.3 M`: three digits and a prefix.
fn scaled(value: f64) -> String {
    let mut value = value;
    let mut prefix = ' ';
    for next in ['k', 'M', 'G', 'T', 'P'] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        prefix = next;
    }
    let digits = usize::from(value < 99.95);
    if prefix == ' ' { format!("{value:.digits$} ") } else { format!("{value:.digits$} {prefix}") }
}

/// A whole number with separators: `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 node`, `3 nodes`.
pub fn plural(number: usize, noun: &str) -> String {
    format!("{} {noun}{}", count(number as u64), if number == 1 { "" } else { "s" })
}

/// How far: `3.2/10.0 MB` is `3.2 MB/10.0 MB`, `30/150 steps`, `12,000 documents`.
pub fn amount(done: u64, total: Option<u64>, unit: Unit) -> String {
    match (unit, total) {
        (Unit::Bytes, None) => bytes(done),
        (Unit::Bytes, Some(total)) => format!("{}/{}", bytes(done), bytes(total)),
        (_, None) => format!("{}{}", count(done), noun(unit)),
        (_, Some(total)) => format!("{}/{}{}", count(done), count(total), noun(unit)),
    }
}

/// How fast: `3.1 MB/s`, `0.8 steps/s`.
pub fn rate(per_second: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{}/s", bytes(per_second as u64)),
        _ if per_second < 0.1 => {
            format!("{} a {}", duration(1.0 / per_second), noun(unit).trim().trim_end_matches('s'))
        }
        _ => format!("{}{}/s", scaled(per_second).trim_end(), noun(unit)),
    }
}

fn noun(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => " bytes",
        Unit::Documents => " documents",
        Unit::Tokens => " tokens",
        Unit::Steps => " steps",
        Unit::Items => " items",
    }
}

/// A measured value: four significant digits, exponents for the very small and large.
pub fn value(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".into()
    } else if size < 1e-3 {
        trim_zeros(&format!("{value:.3e}"))
    } else if size >= 1e9 {
        format!("{value:.3e}")
    } else if size >= 1000.0 {
        format!("{}{}", if value < 0.0 { "-" } else { "" }, count(size.round() as u64))
    } else {
        let digits = 3 - size.log10().floor() as i32;
        trim_zeros(&format!("{value:.*}", digits.max(0) as usize))
    }
}

/// `2.500e-5` → `2.5e-5`, `1.200` → `1.2`.
fn trim_zeros(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').map_or((text, None), |(digits, exponent)| (digits, Some(exponent)));
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    exponent.map_or_else(|| digits.to_owned(), |exponent| format!("{digits}e{exponent}"))
}

/// The columns that `text` takes on a screen.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` cut to at most `columns` on a screen, the cut shown as `…`.
pub fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > columns {
            break;
        }
        cut.push(c);
    }
    if columns > 0 {
        cut.push('…');
    }
    cut
}

/// `text` without what a terminal would obey: control characters become `?`, tabs a space.
pub fn tame(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '?',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_well() {
        let durations: Vec<_> =
            [0.0042, 0.42, 9.94, 9.96, 59.6, 184.0, 7500.0, 273_600.0].into_iter().map(duration).collect();
        assert_eq!(durations, ["4 ms", "0.4 s", "9.9 s", "10 s", "1 min 00 s", "3 min 04 s", "2 h 05 min", "3 d 4 h"]);
        let sizes: Vec<_> = [0, 999, 1000, 1_540_000, 999_960_000, 123_456_789_000].into_iter().map(bytes).collect();
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "1.5 MB", "1.0 GB", "123 GB"]);
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn clocks_know_leap_years() {
        let times = [0.0, 951_782_400.0, 951_868_800.5, 1_767_225_599.9, 4_107_542_400.0].map(clock);
        let expected = ["1970-01-01 00:00:00", "2000-02-29 00:00:00", "2000-03-01 00:00:00", "2025-12-31 23:59:59"];
        assert_eq!(times[..4], expected.map(|time| format!("{time} UTC")));
        assert_eq!(times[4], "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn values_keep_four_digits() {
        let values: Vec<_> = [0.0, 2.5e-5, 0.012_345, 3.214_59, 11.5, 12_345.6, -2.0].into_iter().map(value).collect();
        assert_eq!(values, ["0", "2.5e-5", "0.01235", "3.215", "11.5", "12,346", "-2"]);
    }

    #[test]
    fn progress_reads_well() {
        assert_eq!(amount(3_200_000, Some(10_000_000), Unit::Bytes), "3.2 MB/10.0 MB");
        assert_eq!(amount(30, Some(150), Unit::Steps), "30/150 steps");
        assert_eq!(rate(12_345.0, Unit::Tokens), "12.3 k tokens/s");
        assert_eq!(rate(0.05, Unit::Steps), "20 s a step");
        assert_eq!(rate(2.0, Unit::Steps), "2.0 steps/s");
    }

    #[test]
    fn text_is_cut_by_columns_and_tamed() {
        assert_eq!(fit("日本語テキスト", 7), "日本語…");
        assert_eq!(fit("日本語", 6), "日本語");
        assert_eq!(fit("abc", 2), "a…");
        assert_eq!(fit("abc", 0), "");
        assert_eq!(tame("a\u{1b}[2Jb\tc\r"), "a?[2Jb c?");
    }
}
