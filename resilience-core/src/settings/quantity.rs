//! A count or a duration among the settings: where it is held, and what it may be.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The longest duration a setting may hold: a day.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A count or a duration among a connector's settings. A connector lists its own once, by their keys,
/// to have them [read](super::Settings::read_into) and [checked](super::Problems::check).
#[derive(Debug)]
pub enum Quantity<'a> {
    /// A whole number within a range.
    Count(&'a mut u32, RangeInclusive<u32>),
    /// A duration above 0, a day at the most.
    Duration(&'a mut Duration),
    /// The same, or none.
    Limit(&'a mut Option<Duration>),
}

pub(super) fn whole_number(allowed: &RangeInclusive<u32>) -> String {
    format!("a whole number from {} to {}", allowed.start(), allowed.end())
}

/// Setters of a connector's builder, a line and its documentation each: the name, what it takes, and
/// the field that holds it.
///
/// ```
/// #[derive(Default)]
/// #[must_use]
/// struct Builder {
///     limits: Limits,
/// }
///
/// #[derive(Default)]
/// struct Limits {
///     sockets: u32,
/// }
///
/// resilience_core::settings::setters! { Builder:
///     /// Sockets that may be open at once. 1 to 10,000; default 100.
///     max_connections: u32 => limits.sockets;
/// }
/// assert_eq!(Builder::default().max_connections(7).limits.sockets, 7);
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! setters {
    ($builder:ident: $($(#[$doc:meta])* $name:ident: $kind:ty => $($field:ident).+;)+) => {
        impl $builder {
            $($(#[$doc])*
            pub fn $name(mut self, $name: $kind) -> Self {
                self.$($field).+ = $name;
                self
            })+
        }
    };
}
