//! A position in the write-ahead log: what a reader must see at the least.

use std::fmt;
use std::str::FromStr;

/// A position in the server's write-ahead log (an LSN): everything written before it was asked for lies before it.
///
/// It is had from [`wal_position`](crate::DatabaseManager::wal_position) after a write, travels as text or as
/// a number (in a cookie, a header, a message), and goes into
/// [`read_after`](crate::DatabaseManager::read_after), by another process too. Later is greater, also across a
/// failover: what was acknowledged by a synchronous standby keeps its place.
///
/// ```
/// use conn_postgres::WalPosition;
///
/// let position: WalPosition = "16/B374D848".parse()?;
/// assert_eq!((position.to_string().as_str(), u64::from(position)), ("16/B374D848", 0x16_B374_D848));
/// assert!(position < "17/0".parse()?);
/// # Ok::<(), conn_postgres::WalPositionError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct WalPosition(u64);

impl From<u64> for WalPosition {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl From<WalPosition> for u64 {
    fn from(position: WalPosition) -> Self {
        position.0
    }
}

/// As the server writes it: two hexadecimal numbers.
impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for WalPosition {
    type Err = WalPositionError;

    fn from_str(text: &str) -> Result<Self, WalPositionError> {
        // A plus sign would pass for a part of the number.
        let part = |text: &str| match text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            true => u32::from_str_radix(text, 16).ok(),
            false => None,
        };
        let (high, low) = text.trim().split_once('/').ok_or(WalPositionError)?;
        let (high, low) = part(high).zip(part(low)).ok_or(WalPositionError)?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

/// Text that is no position in the write-ahead log. It is not shown: it may come from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no position in the write-ahead log; allowed: two hexadecimal numbers, as in 16/B374D848")]
pub struct WalPositionError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_from_outside_is_read_or_refused_and_never_misread() {
        for text in ["0/0", "0/1", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<WalPosition>().unwrap().to_string(), text);
        }
        for text in ["", "/", "1", "1/", "/1", "+1/2", "1/-2", "1/2/3", "100000000/0", "g/0"] {
            assert_eq!(text.parse::<WalPosition>(), Err(WalPositionError), "{text}");
        }
    }
}
