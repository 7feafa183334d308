//! Durations as people write them, and URLs without what must not be shown.

use std::time::Duration;

/// Parses seconds (`30`, `0.5`) or a number with a unit (`500ms`, `2s`, `1m`, `1h`).
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let plain = digits.trim_end();
    let number = plain
        .chars()
        .all(|c| c.is_ascii_digit() || c == '.')
        .then(|| plain.parse::<f64>().ok())??;
    Duration::try_from_secs_f64(number * unit).ok()
}

/// Hides the user and password of a URL: `redis://***@host:6379/0`. Text that is no URL is hidden whole,
/// and so is a host whose port is no number: that may be a password whose host was left out.
#[must_use]
pub fn redact_url(url: &str) -> String {
    let is_scheme =
        |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return "***".to_owned();
    };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if tail.contains('@') {
        // A password with a bare '/', '?' or '#' ends the authority too early.
        return format!("{scheme}://***");
    }
    let tail = tail.split(['?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{tail}"),
        None if authority.split(',').all(is_host) => format!("{scheme}://{authority}{tail}"),
        None => format!("{scheme}://***"),
    }
}

/// Whether `text` looks like a host, with a port or without.
fn is_host(text: &str) -> bool {
    text.ends_with(']')
        || text.rsplit_once(':').is_none_or(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_as_in_python_or_have_a_unit() {
        for (text, millis) in [
            ("30", 30_000),
            ("0.5", 500),
            (" 2s ", 2000),
            ("500ms", 500),
            ("1m", 60_000),
            ("1.5 m", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text:?}");
        }
        for text in [
            "",
            "-1",
            "+1",
            "1d",
            "ms",
            "1e9",
            "inf",
            "NaN",
            "1 2",
            "0x10",
            "99999999999999999999999999",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_url_keeps_its_host_and_loses_its_password() {
        assert_eq!(redact_url("redis://user:p@ss@host:6379/0?x=secret"), "redis://***@host:6379/0");
        assert_eq!(redact_url("https://host:9200"), "https://host:9200");
        for url in
            ["redis://user:pa/ss@host", "redis://user:pa#ss@host/0", "redis://user:p@a?s@host"]
        {
            assert_eq!(redact_url(url), "redis://***", "{url}");
        }
        assert_eq!(redact_url("hunter2"), "***");
    }

    #[test]
    fn a_password_in_a_malformed_url_is_not_shown() {
        for url in [
            "user:hunter2@host://db",
            "redis://:hunter2",
            "redis://user:hunter2/0",
            "postgres://a:1,user:hunter2/db",
        ] {
            let shown = redact_url(url);
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        for url in ["redis://[::1]:6379/0", "redis://[::1]", "postgres://a:1,b:2/db", "k8s://a.b"] {
            assert_eq!(redact_url(url), url);
        }
    }
}
