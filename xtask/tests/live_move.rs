//! Fear: a service moves, and the application must be restarted to find it again.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use xtask::clock::{Deadline, pause};
use xtask::demo::App;
use xtask::servers::{Backend, Profile, Servers, program};

/// A Redis of this test's own, in the clear, without a password. Dropped, it is ended.
struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let process = Command::new(program("redis-server").expect("redis-server"))
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--daemonize",
                "no",
            ])
            .stdout(Stdio::null())
            .spawn()
            .expect("a Redis");
        let redis = Self { process, port };
        until("a PONG", Duration::from_secs(10), || redis.cli(&["PING"]) == "PONG");
        redis
    }

    fn cli(&self, command: &[&str]) -> String {
        let output =
            Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(command).output();
        String::from_utf8_lossy(&output.expect("redis-cli").stdout).trim().to_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A directory of this test's own, gone with it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_example_follows_a_redis_that_moves_without_a_restart() {
    let servers = Servers::up(Profile::Single, Backend::Auto).expect("servers");
    let scratch = Scratch(std::env::temp_dir().join(format!("live-move-{}", std::process::id())));
    fs::create_dir_all(&scratch.0).expect("a directory");
    let file = scratch.0.join("services.toml");
    let (old, new) = (Redis::start(), Redis::start());
    say_where(&file, &old);

    let mut env = servers.env();
    env.retain(|(name, _)| !name.starts_with("REDIS_"));
    let found = [
        ("REDIS_URL", "redis://nobody-is-here.invalid:1/0"),
        ("REDIS_RESET_TIMEOUT", "2"),
        ("DISCOVERY_FILE", file.to_str().expect("UTF-8")),
        ("RUST_LOG", "shared_external=debug"),
        ("NO_COLOR", "1"),
    ];
    env.extend(found.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let app = App::start(env, scratch.0.join("campaigns.log")).expect("the example service");

    begin_session(&app, &old);
    assert_eq!(new.cli(&["DBSIZE"]), "0");
    say_where(&file, &new);
    drop(old);
    until("sessions at the new place", Duration::from_secs(8), || {
        let begun = app.client().send("POST", "/session", &[], Some(&json!({ "user": "ada" })));
        begun.is_ok_and(|begun| begun.status == 201)
    });
    begin_session(&app, &new);

    let log = app.log().expect("a log");
    let moved =
        |line: &&str| line.contains("shared_external::") && line.contains(&new.port.to_string());
    assert!(
        log.lines().any(|line| moved(&line)),
        "the log does not tell the choice of {}",
        new.port
    );
}

/// A session that the Redis itself knows of.
fn begin_session(app: &App, redis: &Redis) {
    let begun = app
        .client()
        .send("POST", "/session", &[], Some(&json!({ "user": "ada" })))
        .expect("an answer");
    assert_eq!(begun.status, 201, "{}", begun.body);
    let token = begun.json().expect("JSON")["token"].as_str().expect("a token").to_owned();
    assert_eq!(redis.cli(&["GET", &format!("session:{token}")]), "ada");
}

/// Writes the file as a deployment tool would: whole, in one step.
fn say_where(file: &Path, redis: &Redis) {
    let next = file.with_extension("next");
    fs::write(&next, format!("[services.redis]\nendpoints = [\"127.0.0.1:{}\"]\n", redis.port))
        .expect("a file");
    fs::rename(next, file).expect("a rename");
}

fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Deadline::after(patience);
    while !holds() {
        assert!(!deadline.has_passed(), "no {what} within {patience:?}");
        pause(Duration::from_millis(50));
    }
}
