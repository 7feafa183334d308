//! How numbers look in JSON: thousandths of a second and millionths of a ratio are enough for people.

use std::time::Duration;

use serde::{Serialize, Serializer};

pub(crate) fn ratio<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|value| (value * 1e6).round() / 1e6).serialize(serializer)
}

pub(crate) fn seconds<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(thousandths(value.as_secs_f64()))
}

pub(crate) fn maybe_seconds<S: Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.map(|value| thousandths(value.as_secs_f64())).serialize(serializer)
}

pub(crate) fn maybe_milliseconds<S: Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.map(|value| thousandths(value.as_secs_f64() * 1000.0)).serialize(serializer)
}

fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
