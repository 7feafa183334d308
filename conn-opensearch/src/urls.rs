//! Reads the URLs of the nodes, and the login that may stand in them.

use opensearch::http::Url;
use percent_encoding::percent_decode_str;
use resilience_core::settings::{Held, redact_url};
use secrecy::ExposeSecret;

use crate::transport::Login;

/// What is allowed.
const ALLOWED: &str = "one or several URLs such as https://localhost:9200, separated by commas: \
    http or https, the same for all, with a host, perhaps user:password@, a port or a path, and nothing more";

/// The nodes, each once and without a login, and the login.
///
/// # Errors
///
/// What a URL holds, as far as it may be shown, and what is allowed.
pub(crate) fn parse(texts: &[String]) -> Result<(Vec<Url>, Option<Login>), (Held, String)> {
    let texts: Vec<&str> =
        texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).collect();
    let mut nodes: Vec<Url> = Vec::new();
    let mut logins = Vec::new();
    for text in &texts {
        let (url, login) = node(text).ok_or_else(|| (shown(text, &texts), ALLOWED.to_owned()))?;
        if nodes.first().is_some_and(|first| first.scheme() != url.scheme()) {
            let held = Held::Text("http for some nodes and https for others".into());
            return Err((
                held,
                "the same for all, or some would get in clear text what others get encrypted"
                    .into(),
            ));
        }
        logins.push(login);
        if !nodes.contains(&url) {
            nodes.push(url);
        }
    }
    let Some(login) = logins.pop() else { return Err((Held::Nothing, ALLOWED.to_owned())) };
    let same = logins.iter().all(|other| match (other, &login) {
        (Some(other), Some(login)) => other.is(login),
        (other, login) => other.is_none() && login.is_none(),
    });
    match same {
        true => Ok((nodes, login)),
        false => Err((Held::Secret, "the same user:password@ in every URL, or in none".into())),
    }
}

fn node(text: &str) -> Option<(Url, Option<Login>)> {
    let mut url = Url::parse(text).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.port() != Some(0)
        && url.query().is_none()
        && url.fragment().is_none();
    if !plain {
        return None;
    }
    let decoded = |part| percent_decode_str(part).decode_utf8().ok().map(String::from);
    let login = match (url.username(), url.password()) {
        ("", None) => None,
        ("", Some(_)) | (_, None) => return None,
        (username, Some(password)) => {
            Some(Login { username: decoded(username)?, password: decoded(password)?.into() })
        }
    };
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Some((url, login))
}

/// As much of `text` as may be shown. A comma in a password tears it in two, and the first half looks
/// like a host: so wherever there is a login at all, only what stands behind one is shown.
fn shown(text: &str, all: &[&str]) -> Held {
    let has_login = |text: &str| text.contains('@');
    match text.contains("://") {
        _ if has_login(text) || !all.iter().any(|text| has_login(text)) => {
            Held::Text(if text.contains("://") { redact_url(text) } else { redact_bare(text) })
        }
        _ => Held::Secret,
    }
}

fn redact_bare(text: &str) -> String {
    text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("***@{host}"))
}

impl Login {
    /// Whether both are the same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.username == other.username
            && self.password.expose_secret() == other.password.expose_secret()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Vec<Url>, Option<Login>), (Held, String)> {
        parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    fn held(text: &str) -> Held {
        read(text).unwrap_err().0
    }

    #[test]
    fn nodes_are_taken_each_once_with_port_and_path() {
        let (nodes, login) =
            read("https://a, https://b:9200/search,https://a/,,https://[::1]:9200").unwrap();
        let nodes: Vec<_> = nodes.iter().map(Url::as_str).collect();
        assert_eq!(nodes, ["https://a/", "https://b:9200/search/", "https://[::1]:9200/"]);
        assert!(login.is_none());
    }

    #[test]
    fn what_is_no_node_is_refused_and_shown() {
        for text in [
            "localhost:9200",
            "ftp://a",
            "https://",
            "https://a:0",
            "https://a:99999",
            "https://a/#x",
            "opensearch",
            "https://user@a",
        ] {
            assert!(matches!(held(text), Held::Text(_)), "{text}");
        }
        assert_eq!(held("localhost:9200"), Held::Text("localhost:9200".into()));
        assert_eq!(held("https://a?token=hunter2"), Held::Text("https://a".into()));
        assert_eq!(held(""), Held::Nothing);
        assert_eq!(
            held("http://a,https://b"),
            Held::Text("http for some nodes and https for others".into())
        );
    }

    #[test]
    fn a_password_torn_by_a_comma_is_not_shown() {
        for text in ["https://app:hunter2,x@a:9200", "https://app:hunter2,9@a", "app:hunter2@a"] {
            let (held, allowed) = read(text).unwrap_err();
            assert!(!format!("{held:?}{allowed}").contains("hunter2"), "{text}: {held:?}");
        }
    }

    #[test]
    fn a_login_must_be_the_same_everywhere() {
        let (nodes, login) = read("https://app:p%40ss%2C@a,https://app:p%40ss%2C@b").unwrap();
        assert!(login.unwrap().is(&Login { username: "app".into(), password: "p@ss,".into() }));
        assert_eq!(nodes[1].as_str(), "https://b/");
        for text in ["https://app:x@a,https://app:y@b", "https://app:x@a,https://b"] {
            assert_eq!(held(text), Held::Secret, "{text}");
        }
    }
}
