//! The ids of runs.

use flow_core::Civil;

/// `20260131-235959-123a4b5`: date, time, milliseconds (ids sort by time), and four digits that tell runs of the same
/// millisecond apart.
pub fn new_id(time: f64) -> String {
    let Civil { year, month, day, hour, minute, second } = Civil::of(time);
    let salt = blake3::hash(format!("{time} {}", std::process::id()).as_bytes()).to_hex();
    let milli = (time.fract() * 1000.0) as u32;
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}-{milli:03}{}", &salt[..4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dates_and_sort() {
        assert!(new_id(0.0).starts_with("19700101-000000-"));
        assert!(new_id(951_782_399.0).starts_with("20000228-235959-"));
        assert!(new_id(951_782_400.0).starts_with("20000229-000000-"));
        assert!(new_id(1_798_761_599.5).starts_with("20261231-235959-500"));
    }
}
