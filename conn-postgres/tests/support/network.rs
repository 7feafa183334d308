//! A network of the test's own: a namespace at the end of a cable that can be pulled. Only root may make one.

use std::process::Command;

pub struct Network {
    pub name: String,
    /// The address at the far end.
    pub far: String,
    /// The far end of the cable, as the namespace knows it.
    end: String,
}

impl Network {
    /// One at a time in a process.
    pub fn new() -> Self {
        Self::allowed().unwrap_or_else(|refused| panic!("{refused}; it needs root"))
    }

    /// The same, or why none can be made here.
    pub fn allowed() -> Result<Self, String> {
        let id = std::process::id();
        let [high, low, ..] = id.to_le_bytes();
        let near = format!("10.{}.{low}.1/24", 128 + high / 2);
        let far = format!("10.{}.{low}.2", 128 + high / 2);
        let (name, here, end) = (format!("silence-{id}"), format!("cp{id}a"), format!("cp{id}b"));
        let network = Self { name: name.clone(), far: far.clone(), end: end.clone() };
        ip(&["netns", "add", &name])?;
        ip(&["link", "add", &here, "type", "veth", "peer", "name", &end, "netns", &name])?;
        ip(&["address", "add", &near, "dev", &here])?;
        ip(&["link", "set", &here, "up"])?;
        ip(&["-n", &name, "address", "add", &format!("{far}/24"), "dev", &end])?;
        ip(&network.switch(true))?;
        Ok(network)
    }

    /// Pulls the far end of the cable, or puts it in: packets go nowhere, and nothing is reset.
    pub fn set_up(&self, up: bool) {
        ip(&self.switch(up)).unwrap();
    }

    fn switch(&self, up: bool) -> [&str; 6] {
        ["-n", &self.name, "link", "set", &self.end, if up { "up" } else { "down" }]
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The cable goes with its end.
        let _ = Command::new("ip").args(["-n", &self.name, "link", "del", &self.end]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output();
    let output = output.map_err(|error| format!("`ip` (Debian: iproute2): {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {text}", args.join(" "))) }
}
