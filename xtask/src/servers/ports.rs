//! Ports: the ones written down in the profile where they are free, others where they are taken.
//!
//! All are below those that systems give to the near end of a connection (32768 and up on Linux): while a server
//! is down, a client of anything could come by its port, or by trying to connect to it even to itself.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
#[cfg(target_os = "linux")]
use std::os::unix::net::{SocketAddr, UnixListener};

/// Where free ports are looked for.
const FROM: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Picks ports of loopback, and keeps each for the server that is to listen on it, against others that pick too.
#[derive(Debug, Default)]
pub struct Picker {
    held: Vec<(u16, TcpListener)>,
    claims: Vec<Claim>,
}

impl Picker {
    /// `preferred` if it is free and not 0, else a free port.
    ///
    /// # Errors
    ///
    /// If there is none left.
    pub fn pick(&mut self, preferred: u16) -> io::Result<u16> {
        // At random, so that those who pick at the same time seldom meet.
        let first = RandomState::new().hash_one(preferred) % u64::from(COUNT);
        let others = (0..COUNT).map(|next| FROM + (first as u16 + next) % COUNT);
        let ports = std::iter::once(preferred).filter(|port| *port != 0).chain(others);
        for port in ports {
            let Some(listeners) = listen(port) else { continue };
            if let Some(claim) = Claim::on(port) {
                self.claims.push(claim);
                self.held.extend(listeners.into_iter().map(|listener| (port, listener)));
                return Ok(port);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port"))
    }

    /// Lets `port` go for the server that is about to listen on it. No other `up` picks it until this one is over.
    pub fn release(&mut self, port: u16) {
        self.held.retain(|(held, _)| *held != port);
    }
}

/// Whether nobody listens on `port` of loopback.
#[must_use]
pub fn is_free(port: u16) -> bool {
    listen(port).is_some()
}

/// Listens on both loopback addresses: clients may try either for `localhost`.
fn listen(port: u16) -> Option<Vec<TcpListener>> {
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
        Ok(v6) => Some(vec![v4, v6]),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        Err(_) => Some(vec![v4]), // this machine has no IPv6
    }
}

/// A mark on a port that every `up` of this machine sees, which ends with its process and leaves no file.
#[derive(Debug)]
struct Claim {
    #[cfg(target_os = "linux")]
    _name: UnixListener,
}

impl Claim {
    /// `None` if another has it.
    #[cfg(target_os = "linux")]
    fn on(port: u16) -> Option<Self> {
        use std::os::linux::net::SocketAddrExt;

        let name = SocketAddr::from_abstract_name(format!("shared-external-port-{port}")).ok()?;
        Some(Self { _name: UnixListener::bind_addr(&name).ok()? })
    }

    /// Elsewhere, servers are containers, and their engine keeps ports apart.
    #[cfg(not(target_os = "linux"))]
    fn on(_: u16) -> Option<Self> {
        Some(Self {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_falls_back_to_a_free_one() {
        let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = stranger.local_addr().unwrap().port();
        let mut picker = Picker::default();
        let picked = picker.pick(taken).unwrap();
        assert_ne!(picked, taken);
        drop(picker);
        assert!(
            TcpListener::bind((Ipv4Addr::LOCALHOST, picked)).is_ok(),
            "the port is let go for the server"
        );
    }

    #[test]
    fn a_free_port_is_kept_and_never_given_twice() {
        let free = Picker::default().pick(0).unwrap();
        let mut picker = Picker::default();
        assert_eq!(picker.pick(free).unwrap(), free);
        assert_ne!(picker.pick(free).unwrap(), free);
        picker.release(free);
        assert!(is_free(free), "the server gets it");
        assert_ne!(Picker::default().pick(free).unwrap(), free, "another does, before the server");
        drop(picker);
        assert_eq!(Picker::default().pick(free).unwrap(), free);
    }
}
