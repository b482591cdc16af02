//! `strftime_now`, which templates call for today's date. Times are UTC.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// Now, by `format`.
pub(super) fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    strftime(format, now.map_or(0, |since| since.as_secs()))
}

/// The common part of C's `strftime`; other directives are left as they are.
pub(crate) fn strftime(format: &str, seconds: u64) -> String {
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let written = match characters.next() {
            Some('Y') => write!(text, "{year}"),
            Some('y') => write!(text, "{:02}", year % 100),
            Some('m') => write!(text, "{month:02}"),
            Some('d') => write!(text, "{day:02}"),
            Some('B') => write!(text, "{month_name}"),
            Some('b') => write!(text, "{}", &month_name[..3]),
            Some('A') => write!(text, "{day_name}"),
            Some('a') => write!(text, "{}", &day_name[..3]),
            Some('H') => write!(text, "{:02}", clock / 3600),
            Some('M') => write!(text, "{:02}", clock / 60 % 60),
            Some('S') => write!(text, "{:02}", clock % 60),
            Some('F') => write!(text, "{year}-{month:02}-{day:02}"),
            Some('%') | None => write!(text, "%"),
            Some(other) => write!(text, "%{other}"),
        };
        written.expect("writing to a string cannot fail");
    }
    text
}

/// Days since 1970 to year, month and day (H. Hinnant's `civil_from_days`: years begin in March, so
/// that the leap day comes last).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_dates() {
        let check = |seconds, expect: &str| {
            assert_eq!(strftime("%A %d %B %Y, %H:%M:%S %% %q", seconds), expect);
        };
        check(0, "Thursday 01 January 1970, 00:00:00 % %q");
        check(951_782_400, "Tuesday 29 February 2000, 00:00:00 % %q");
        check(1_774_224_000, "Monday 23 March 2026, 00:00:00 % %q");
        check(4_102_444_799, "Thursday 31 December 2099, 23:59:59 % %q");
        assert_eq!(strftime("%b %a %y %F", 0), "Jan Thu 70 1970-01-01");
    }
}
