//! Ports: the ones written down in the profile where they are free, others where they are taken.
//!
//! All are below those that systems give to the near end of a connection (32768 and up on Linux): while a server
//! is down, a client of anything could come by its port, or by trying to connect to it even to itself.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

/// Where free ports are looked for.
const FROM: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Picks ports of loopback, and holds them until it is dropped, so that it never gives one out twice.
#[derive(Debug, Default)]
pub struct Picker {
    held: Vec<TcpListener>,
}

impl Picker {
    /// `preferred` if it is free and not 0, else a free port.
    ///
    /// # Errors
    ///
    /// If there is none left.
    pub fn pick(&mut self, preferred: u16) -> io::Result<u16> {
        // At random: ports are let go before their servers take them, and other checkouts may start now too.
        let first = RandomState::new().hash_one(preferred) % u64::from(COUNT);
        let others = (0..COUNT).map(|next| FROM + (first as u16 + next) % COUNT);
        let ports = std::iter::once(preferred).filter(|port| *port != 0).chain(others);
        let mut free = ports.filter_map(|port| self.hold(port));
        free.next().ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "no free port"))
    }

    /// Holds `port` on both loopback addresses: clients may try either for `localhost`.
    fn hold(&mut self, port: u16) -> Option<u16> {
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(v6) => self.held.push(v6),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return None,
            Err(_) => {} // this machine has no IPv6
        }
        self.held.push(v4);
        Some(port)
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
    }
}
