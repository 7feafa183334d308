//! Fuzz target: bytes are a duration as settings hold it, which must be what exact arithmetic says.

use std::time::Duration;

use resilience_core::settings::parse_duration;

/// Reads `bytes` twice and compares.
///
/// # Panics
///
/// If the two readings differ by more than the rounding of doubles.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match (parse_duration(text), exact_nanos(text)) {
        (None, None | Some(None)) => {}
        (Some(read), Some(Some(exact))) => {
            // A double holds 53 bits; a unit below a second costs one rounding more.
            let tolerance = exact / (1 << 50) + 1;
            let apart = read.as_nanos().abs_diff(exact);
            assert!(apart <= tolerance, "{text:?} is {read:?}, not {exact} ns");
        }
        // Doubles round at the very end of what a duration can hold.
        (None, Some(Some(exact))) => {
            let most = Duration::MAX.as_nanos();
            assert!(exact > most - most / (1 << 50), "{text:?} is {exact} ns, and was refused");
        }
        (Some(read), _) => panic!("{text:?} is no duration, and was read as {read:?}"),
    }
}

/// The nanoseconds that `text` says: `None` if it says none, `Some(None)` if they are too many.
fn exact_nanos(text: &str) -> Option<Option<u128>> {
    let text = text.trim();
    let units =
        [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];
    let unit = units.iter().find_map(|(unit, nanos)| Some((text.strip_suffix(unit)?, *nanos)));
    let (number, unit): (&str, u128) = unit.unwrap_or((text, 1_000_000_000));
    let number = number.trim_end();
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || whole.len() + part.len() == 0 {
        return None;
    }
    let digit = |byte: u8| u128::from(byte - b'0');
    let mut value = Some(0_u128);
    for byte in whole.bytes() {
        value = value.and_then(|value| value.checked_mul(10)?.checked_add(digit(byte)));
    }
    let nanos = value.and_then(|value| value.checked_mul(unit));
    // Beyond 24 places there is less than a nanosecond left of an hour.
    let part: String = part.chars().take(24).collect();
    let mut fraction = 0;
    for byte in part.bytes().rev() {
        fraction = (fraction + digit(byte) * unit * 10_u128.pow(9)) / 10;
    }
    let rounded = (fraction + 10_u128.pow(9) / 2) / 10_u128.pow(9);
    let nanos = nanos.and_then(|nanos| nanos.checked_add(rounded));
    Some(nanos.filter(|nanos| *nanos <= Duration::MAX.as_nanos()))
}
