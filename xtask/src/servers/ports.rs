//! Ports: the ones written down in the profile where they are free, any free one where they are taken.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

/// Picks ports of loopback, and holds each until it is released, so that neither we nor another `up` give it out twice.
#[derive(Debug, Default)]
pub struct Picker {
    held: Vec<(u16, TcpListener)>,
}

impl Picker {
    /// `preferred` if it is free, else a free port.
    ///
    /// # Errors
    ///
    /// If the system has no port left.
    pub fn pick(&mut self, preferred: u16) -> io::Result<u16> {
        for port in std::iter::once(preferred).chain(std::iter::repeat_n(0, 20)) {
            if let Some(port) = self.hold(port) {
                return Ok(port);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port"))
    }

    /// Lets `port` go for the server that is about to listen on it.
    pub fn release(&mut self, port: u16) {
        self.held.retain(|(held, _)| *held != port);
    }

    /// Holds `port` on both loopback addresses: clients may try either for `localhost`.
    fn hold(&mut self, port: u16) -> Option<u16> {
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        let port = v4.local_addr().ok()?.port();
        match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(v6) => self.held.push((port, v6)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return None,
            Err(_) => {} // this machine has no IPv6
        }
        self.held.push((port, v4));
        Some(port)
    }
}

/// Whether somebody else could listen on `port` of loopback now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    Picker::default().hold(port).is_some()
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
        assert!(is_free(free), "the one server gets its port, the others' stay held");
        assert_eq!(picker.held.iter().filter(|(port, _)| *port == free).count(), 0);
        assert!(!picker.held.is_empty());
    }
}
