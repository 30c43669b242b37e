//! The ids of runs.

/// `20260131-235959-123a4b5`: date, time, milliseconds (ids sort by time), and four digits that tell runs of the same
/// millisecond apart.
pub fn new_id(time: f64) -> String {
    let seconds = time as u64;
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Civil date from days since 1970: years begin in March, eras have 400 years.
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
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
