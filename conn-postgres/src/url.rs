//! Reads a database URL: several hosts, the Python module's scheme, percent-encoded credentials.

use std::path::PathBuf;

use resilience_core::Address;
use resilience_core::settings::{Held, redact_url};
use secrecy::SecretString;
use sqlx::postgres::PgSslMode;
use sqlx_core::percent_encoding::percent_decode_str;
use url::form_urlencoded;

use crate::role::TargetSessionAttrs;

const PORT: u16 = 5432;
const SCHEMES: [&str; 4] = ["postgres", "postgresql", "postgresql+asyncpg", "postgres+asyncpg"];
pub(crate) const FORM: &str = "postgresql://user:password@host:5432/database, with special characters in user and password percent-encoded";

/// What a URL says. What it leaves out is `None` or empty.
#[derive(Default)]
pub(crate) struct Target {
    /// In the URL's order; never empty.
    pub(crate) hosts: Vec<Address>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<SecretString>,
    pub(crate) database: Option<String>,
    pub(crate) ssl_mode: Option<PgSslMode>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) client_cert_file: Option<PathBuf>,
    pub(crate) client_key_file: Option<PathBuf>,
    pub(crate) application_name: Option<String>,
    pub(crate) statement_cache: Option<usize>,
    pub(crate) pgbouncer: Option<bool>,
    pub(crate) attrs: Option<TargetSessionAttrs>,
    /// Settings of the server's session, in the URL's order.
    pub(crate) options: Vec<(String, String)>,
}

/// One thing wrong with a URL: what it holds, what is allowed.
type Wrong = (Held, String);

/// Reads `url`, and tells all that is wrong with it.
pub(crate) fn parse(url: &str) -> Result<Target, Vec<Wrong>> {
    let url = url.trim();
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(vec![(Held::Secret, FORM.to_owned())]);
    };
    if !SCHEMES.contains(&scheme) {
        let allowed = format!("the scheme postgres, postgresql or postgresql+asyncpg: {FORM}");
        return Err(vec![(shown(url), allowed)]);
    }
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if tail.contains('@') && !authority.contains('@') {
        // A password with a bare '/', '?' or '#' ends the authority too early.
        let allowed = format!("{FORM}: '/' as %2F, '?' as %3F, '#' as %23");
        return Err(vec![(Held::Secret, allowed)]);
    }
    if authority.matches('@').count() > 1 {
        let allowed =
            format!("one user and password, before the first host and for all: {FORM}: '@' as %40");
        return Err(vec![(Held::Secret, allowed)]);
    }
    if url.contains('\0') || url.contains("%00") {
        return Err(vec![(Held::Secret, "a URL without a NUL, which is %00".to_owned())]);
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let mut reader = Reader { url, target: Target::default(), port: PORT, wrong: Vec::new() };
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    reader.credentials(credentials);
    reader.target.database = reader.decoded(path.trim_start_matches('/'));
    let query = query.split('#').next().unwrap_or_default();
    let (mut named, mut stated) = (Vec::new(), Vec::new());
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let may_repeat = ["host", "hostaddr", "options"].contains(&&*key);
        if !may_repeat && stated.contains(&key) {
            reader.wrong.push((reader.with_parameter(&key), format!("{key} once")));
            continue;
        }
        stated.push(key.clone());
        match &*key {
            "host" | "hostaddr" => named.extend(value.split(',').map(str::to_owned)),
            key => reader.parameter(key, &value),
        }
    }
    // As in libpq, hosts named among the parameters stand in for the one before the path.
    match named.is_empty() {
        true => reader.hosts(hosts.split(',').filter(|host| !host.is_empty())),
        false => reader.hosts(named.iter().map(String::as_str)),
    }
    reader.finish()
}

/// The URL without its credentials, if it is clear where they end: what looks like a port may be a
/// password whose host was forgotten.
fn shown(url: &str) -> Held {
    let authority = url.split("://").nth(1).unwrap_or_default();
    match url.matches('@').count() {
        0 if !authority.contains(':') => Held::Text(redact_url(url)),
        1 => Held::Text(redact_url(url)),
        _ => Held::Secret,
    }
}

struct Reader<'a> {
    url: &'a str,
    target: Target,
    port: u16,
    wrong: Vec<Wrong>,
}

impl Reader<'_> {
    fn credentials(&mut self, text: &str) {
        let (user, password) = match text.split_once(':') {
            Some((user, password)) => (user, self.decoded(password)),
            None => (text, None),
        };
        self.target.user = self.decoded(user);
        self.target.password = password.map(SecretString::from);
    }

    /// Percent-decoded text; `None` if empty.
    fn decoded(&mut self, text: &str) -> Option<String> {
        if !is_percent_encoded(text) {
            let allowed = "a URL in which each '%' begins a code of two hexadecimal digits; '%' itself is %25";
            self.wrong.push((shown(self.url), allowed.to_owned()));
            return None;
        }
        match percent_decode_str(text).decode_utf8() {
            Ok(text) => Some(text.into_owned()).filter(|text| !text.is_empty()),
            Err(_) => {
                let allowed = "a URL whose percent-encoded parts are UTF-8";
                self.wrong.push((shown(self.url), allowed.to_owned()));
                None
            }
        }
    }

    fn hosts<'h>(&mut self, hosts: impl Iterator<Item = &'h str>) {
        for text in hosts {
            match self.host(text) {
                Some(address) => self.target.hosts.push(address),
                None => {
                    let allowed = "hosts as name, name:port or [IPv6]:port, comma-separated, with ports from 1 to 65535";
                    self.wrong.push((shown(self.url), allowed.to_owned()));
                }
            }
        }
    }

    fn host(&self, text: &str) -> Option<Address> {
        let decoded = percent_decode_str(text).decode_utf8().ok()?;
        if decoded.starts_with('/') {
            // The directory of a Unix socket.
            return Some(Address::new(&*decoded, self.port));
        }
        if text.contains(['%', ';']) {
            return None;
        }
        let has_port = text.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
        match has_port {
            true => text.parse().ok(),
            false => format!("{text}:{}", self.port).parse().ok(),
        }
    }

    fn parameter(&mut self, key: &str, value: &str) {
        let target = &mut self.target;
        let allowed = match key {
            "sslmode" | "ssl-mode" | "ssl" => match value.parse() {
                Ok(mode) => {
                    target.ssl_mode = Some(mode);
                    return;
                }
                Err(_) => "disable, allow, prefer, require, verify-ca or verify-full",
            },
            "port" => match value.parse() {
                Ok(port) if port != 0 => {
                    self.port = port;
                    return;
                }
                _ => "one port from 1 to 65535, for the hosts that have none; others as host:port",
            },
            "statement-cache-capacity"
            | "statement_cache_size"
            | "prepared_statement_cache_size" => match value.parse() {
                Ok(capacity) if capacity <= 100_000 => {
                    target.statement_cache = Some(capacity);
                    return;
                }
                _ => "a whole number from 0 to 100000",
            },
            "pgbouncer" => match value.parse() {
                Ok(pgbouncer) => {
                    target.pgbouncer = Some(pgbouncer);
                    return;
                }
                Err(_) => "true or false",
            },
            "options" => match options(value) {
                Some(options) => {
                    target.options.extend(options);
                    return;
                }
                None => "-c name=value or --name=value, separated by spaces",
            },
            "target_session_attrs" => match value.parse() {
                Ok(attrs) => {
                    target.attrs = Some(attrs);
                    return;
                }
                Err(_) => TargetSessionAttrs::WORDS,
            },
            "sslrootcert" => return target.ca_file = Some(value.into()),
            "sslcert" => return target.client_cert_file = Some(value.into()),
            "sslkey" => return target.client_key_file = Some(value.into()),
            "application_name" => return target.application_name = Some(value.to_owned()),
            "dbname" => return target.database = Some(value.to_owned()),
            "user" => return target.user = Some(value.to_owned()),
            "password" => return target.password = Some(value.to_owned().into()),
            _ => match key.strip_prefix("options[").and_then(|key| key.strip_suffix(']')) {
                Some(name) => {
                    return target.options.push((name.to_owned(), value.to_owned()));
                }
                None => {
                    let allowed = "no such parameter; allowed: host, port, user, password, dbname, sslmode, sslrootcert, sslcert, sslkey, application_name, options, target_session_attrs, statement-cache-capacity, pgbouncer";
                    self.wrong.push((self.with_parameter(key), allowed.to_owned()));
                    return;
                }
            },
        };
        self.wrong.push((self.with_parameter(key), format!("{key} as {allowed}")));
    }

    /// The URL with the parameter's name. Its value may be a secret that went astray.
    fn with_parameter(&self, key: &str) -> Held {
        match shown(self.url) {
            Held::Text(url) => Held::Text(format!("{url}?{key}=…")),
            other => other,
        }
    }

    fn finish(mut self) -> Result<Target, Vec<Wrong>> {
        if !self.wrong.is_empty() {
            return Err(self.wrong);
        }
        if self.target.hosts.is_empty() {
            self.target.hosts.push(Address::new("localhost", self.port));
        }
        Ok(self.target)
    }
}

/// Whether each `%` begins a code.
fn is_percent_encoded(text: &str) -> bool {
    let code = |rest: &str| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    text.split('%').skip(1).all(code)
}

/// Reads libpq's `options`: `-c name=value` or `--name=value`, with `\ ` for a space.
fn options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let word = words.last_mut().expect("it starts with one and only grows");
        match letter {
            '\\' => word.push(letters.next()?),
            ' ' => words.push(String::new()),
            letter => word.push(letter),
        }
    }
    let mut options = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--") {
            Some(long) => long.to_owned(),
            None => match word.strip_prefix("-c")? {
                "" => words.next()?,
                joined => joined.to_owned(),
            },
        };
        let (name, value) = setting.split_once('=')?;
        options.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn hosts(url: &str) -> Vec<String> {
        let target = parse(url).map_err(|wrong| format!("{wrong:?}")).unwrap();
        target.hosts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_python_modules_url_moves_over_unchanged() {
        for scheme in SCHEMES {
            let url = format!("{scheme}://user:pass@localhost:5432/db");
            let target = parse(&url).ok().unwrap();
            assert_eq!(target.hosts, [Address::new("localhost", 5432)]);
            assert_eq!(target.user.as_deref(), Some("user"));
            assert_eq!(target.password.unwrap().expose_secret(), "pass");
            assert_eq!(target.database.as_deref(), Some("db"));
        }
    }

    #[test]
    fn several_hosts_keep_their_order() {
        assert_eq!(
            hosts("postgres://u:p@one:5433,two,[::1]:5434,[::2]/db?port=6000"),
            ["one:5433", "two:6000", "[::1]:5434", "[::2]:6000"]
        );
        assert_eq!(
            hosts("postgresql+asyncpg://u:p@/db?host=one:1&host=two:2,three"),
            ["one:1", "two:2", "three:5432"]
        );
        assert_eq!(hosts("postgres:///db"), ["localhost:5432"]);
        assert_eq!(hosts("postgres://%2Fvar%2Frun%2Fpostgresql/db"), ["/var/run/postgresql:5432"]);
    }

    #[test]
    fn the_role_is_read_in_libpqs_words() {
        let attrs = |url| parse(url).ok().unwrap().attrs;
        assert_eq!(attrs("postgres://a,b/d"), None);
        let url = "postgres://a,b/d?target_session_attrs=prefer-standby";
        assert_eq!(attrs(url), Some(TargetSessionAttrs::PreferStandby));
    }

    #[test]
    fn a_password_may_hold_anything_percent_encoded() {
        let target = parse("postgres://us%40er:p%40s%2Fs%3A%25%23@host/d%20b").ok().unwrap();
        assert_eq!(target.user.as_deref(), Some("us@er"));
        assert_eq!(target.password.unwrap().expose_secret(), "p@s/s:%#");
        assert_eq!(target.database.as_deref(), Some("d b"));
    }

    #[test]
    fn a_wrong_url_is_told_without_its_secret() {
        for url in [
            "hunter2",
            "postgres://user:hunter2",
            "postgres://user:hunter2/db?nothing=1",
            "mysql://user:hunter2@host/db",
            "postgres://user:hun/ter2@host/db",
            "postgres://user:hun#ter2@host/db",
            "postgres://user:hunter2@host:0/db",
            "postgres://user:hunter2@host:70000/db",
            "postgres://user:hunter2@ho st/db",
            "postgres://user:hunter2@one,two:x/db",
            "postgres://user:hunter2@host/db?sslmode=maybe",
            "postgres://user:hunter2@host/db?port=x",
            "postgres://user:%ffhunter2@host/db",
            "postgres://host/db?sslpassword=hunter2",
            "postgres://u:hunter2@host/db?target_session_attrs=hunter2",
            "postgres://u:hunter2@host/db?options=-d%20x",
            "postgres://user:hun@ter2@host/db?nothing=1",
        ] {
            let wrong = parse(url).err().unwrap_or_else(|| panic!("{url} was taken"));
            let text = format!("{wrong:?}");
            assert!(!text.contains("hun") && !text.contains("ter2"), "{url}: {text}");
        }
    }

    #[test]
    fn all_that_is_wrong_with_a_url_is_told_at_once() {
        let wrong = parse("postgres://u:p@a:x,b:y/db?sslmode=z&foo=1").err().unwrap();
        assert_eq!(wrong.len(), 4);
    }

    #[test]
    fn session_settings_come_through_in_either_form() {
        let target =
            parse("postgres://h/d?options=-c%20a%3D1%20--b-c%3D2%5C%20x%20-cd%3D3&options[e]=4")
                .ok()
                .unwrap();
        let expected = [("a", "1"), ("b_c", "2 x"), ("d", "3"), ("e", "4")];
        assert_eq!(target.options, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
