//! Does a server answer? Asked in its own protocol, over TLS where it has that, with a time limit, and without its client
//! programs.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::clock::Deadline;

use super::profile::{self, Service};

/// A connection that has checked the server's certificate.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// How long a server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the service behind `port` answers.
///
/// # Errors
///
/// What it said instead, or why nothing came.
pub fn check(service: Service, port: u16, ca: &Path) -> Result<()> {
    let answer = match service {
        Service::Postgres | Service::Standby | Service::Pgbouncer => postgres(port, ca),
        Service::Toxiproxy => toxiproxy(port),
        Service::Redis => redis(port, ca),
        Service::Opensearch => opensearch(port, ca),
    };
    let is_timeout = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    };
    match answer {
        // The system calls an expired read "resource temporarily unavailable".
        Err(error) if error.root_cause().downcast_ref().is_some_and(is_timeout) => {
            bail!("no answer within {} s", PATIENCE.as_secs())
        }
        answer => answer,
    }
}

/// Whether PostgreSQL, or PgBouncer in its place, takes a connection of `app` and asks it for its password.
fn postgres(port: u16, ca: &Path) -> Result<()> {
    let mut tcp = connect(port)?;
    // SSLRequest: the length and a code that is no protocol version; `S` means go on with TLS.
    tcp.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
    let mut answer = [0];
    tcp.read_exact(&mut answer)?;
    if answer != *b"S" {
        bail!("it does not speak TLS");
    }
    let mut tls = handshake(tcp, ca)?;
    let body = format!("user\0{0}\0database\0{0}\0\0", profile::DATABASE_USER);
    let length = u32::try_from(body.len() + 8).context("too long")?;
    tls.write_all(&[&length.to_be_bytes()[..], &[0, 3, 0, 0], body.as_bytes()].concat())?;
    let mut head = [0; 5];
    tls.read_exact(&mut head)?;
    // Read to the end of the message, or closing would look like a reset in the server's log.
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]).clamp(4, 4096) - 4;
    let mut message = vec![0; usize::try_from(length).context("too long")?];
    tls.read_exact(&mut message)?;
    tls.conn.send_close_notify();
    let _ = tls.conn.complete_io(&mut tls.sock);
    if head[0] != b'R' {
        bail!("{}", String::from_utf8_lossy(&message).replace('\0', " "));
    }
    Ok(())
}

/// Whether toxiproxy has all its proxies: it goes on without one whose port it does not get.
fn toxiproxy(port: u16) -> Result<()> {
    let (status, body) = order(port, "GET", "/proxies", "")?;
    if status != 200 {
        bail!("HTTP {status}: {}", body.trim());
    }
    for name in [profile::PRIMARY, profile::STANDBY, profile::PGBOUNCER] {
        if !body.contains(&format!("\"name\":\"{name}\"")) {
            bail!("it has no proxy named {name}");
        }
    }
    Ok(())
}

/// Whether Redis takes our password and answers a PING.
fn redis(port: u16, ca: &Path) -> Result<()> {
    let mut tls = handshake(connect(port)?, ca)?;
    tls.write_all(format!("AUTH {}\r\nPING\r\nQUIT\r\n", profile::REDIS_PASSWORD).as_bytes())?;
    let answer = read_all(&mut tls)?;
    if answer.contains("+PONG") {
        return Ok(());
    }
    bail!("{}", answer.lines().next().unwrap_or("it hung up"));
}

/// Whether OpenSearch lets the administrator in and its cluster is not red.
fn opensearch(port: u16, ca: &Path) -> Result<()> {
    let (status, body) = get(port, ca, "/_cluster/health")?;
    if status != 200 {
        bail!("HTTP {status}: {}", body.trim());
    }
    if body.contains(r#""status":"red""#) {
        bail!("the cluster is red");
    }
    Ok(())
}

/// GETs `path` from OpenSearch as the administrator; the status and the body.
///
/// # Errors
///
/// If no answer comes, or it is not HTTP.
pub fn get(port: u16, ca: &Path, path: &str) -> Result<(u16, String)> {
    let mut tls = handshake(connect(port)?, ca)?;
    let credentials =
        base64(&format!("{}:{}", profile::OPENSEARCH_USERNAME, profile::OPENSEARCH_PASSWORD));
    // HTTP/1.0: the body ends with the connection, and is not chunked.
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Basic {credentials}\r\n\r\n"
    );
    tls.write_all(request.as_bytes())?;
    parse(&read_all(&mut tls)?)
}

/// Gives toxiproxy an order; the status and the body of its answer.
///
/// # Errors
///
/// If no answer comes, or it is not HTTP.
pub fn order(port: u16, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let mut tcp = connect(port)?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    tcp.write_all(request.as_bytes())?;
    parse(&read_all(&mut tcp)?)
}

fn parse(answer: &str) -> Result<(u16, String)> {
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Ok((status.context("the answer is not HTTP")?, body.to_owned()))
}

/// Connects to `localhost:port`, whichever loopback address answers.
fn connect(port: u16) -> io::Result<TcpStream> {
    let mut refused = io::Error::from(io::ErrorKind::NotFound);
    for address in ("localhost", port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(tcp) => {
                tcp.set_read_timeout(Some(PATIENCE))?;
                tcp.set_write_timeout(Some(PATIENCE))?;
                return Ok(tcp);
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn handshake(tcp: TcpStream, ca: &Path) -> Result<TlsStream> {
    let mut roots = RootCertStore::empty();
    roots.add(
        CertificateDer::from_pem_file(ca)
            .with_context(|| format!("cannot read {}", ca.display()))?,
    )?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("it is a DNS name");
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, tcp);
    tls.conn.complete_io(&mut tls.sock).context("TLS handshake")?;
    Ok(tls)
}

/// Reads to the end; a peer that trickles gets no more than 1 MiB and [`PATIENCE`].
fn read_all(stream: &mut impl Read) -> io::Result<String> {
    let deadline = Deadline::after(PATIENCE);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&chunk[..length]),
            // Redis hangs up without a TLS goodbye.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        if answer.len() > 1 << 20 || deadline.has_passed() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for group in text.as_bytes().chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            let six = usize::try_from(bits >> (18 - 6 * place) & 63).expect("six bits");
            encoded.push(if place <= group.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_one_of_rfc_4648() {
        let known =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (text, encoded) in known {
            assert_eq!(base64(text), encoded);
        }
        assert_eq!(base64("admin:admin"), "YWRtaW46YWRtaW4=");
    }
}
