//! Fear: what a stranger sends, or when, makes the service answer with an error of its own, or with a lie.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

/// The service in a process of its own; it ends with the test.
struct App {
    child: Child,
    address: SocketAddr,
}

impl App {
    /// Starts it with `variables`, and waits until `path` is answered as `wanted`.
    fn start(variables: &[(&str, &str)], path: &str, wanted: impl Fn(&Answer) -> bool) -> Self {
        assert!(std::env::var_os("DATABASE_URL").is_some(), "set by `cargo xtask test`");
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_campaigns"));
        command.env("CAMPAIGNS_LISTEN", address.to_string()).envs(variables.iter().copied());
        let app = Self { child: command.spawn().unwrap(), address };
        for _ in 0..2_000 {
            if TcpStream::connect(address).is_ok() && wanted(&app.get(path)) {
                return app;
            }
            pause();
        }
        panic!("{path} is not answered as wanted");
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    fn donate(&self, campaign: u32, key: &str, donation: &Value) -> Answer {
        let path = format!("/campaigns/{campaign}/donations");
        self.send("POST", &path, &[("idempotency-key", key)], &donation.to_string())
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
        // One that is refused early may be answered before it was read.
        let _ = stream.write_all(format!("{request}\r\n{body}").as_bytes());
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, body: serde_json::from_str(body).unwrap_or_else(|_| body.into()) }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: Value,
}

/// With everything there.
fn app() -> App {
    App::start(&[], "/campaigns?q=solar", |answer| answer.body["degraded"] == false)
}

/// A key that nobody has used.
fn key(name: &str) -> String {
    format!("{name}-{}", Uuid::new_v4())
}

/// Lets the service get on.
fn pause() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(10)).await });
}

#[test]
fn a_key_that_was_used_for_another_donation_books_nothing_and_says_so() {
    let (app, key) = (app(), key("other"));
    let ada = json!({ "donor": "Ada", "amount_cents": 2_500 });
    let first = app.donate(31, &key, &ada);
    assert_eq!(first.status, 201, "{first:?}");
    let again = app.donate(31, &key, &ada);
    assert_eq!((again.status, &again.body["repeated"]), (200, &Value::Bool(true)), "{again:?}");
    assert_eq!(again.body["donation_id"], first.body["donation_id"]);
    for other in [
        json!({ "donor": "Ada", "amount_cents": 2_501 }),
        json!({ "donor": "Grace", "amount_cents": 2_500 }),
    ] {
        assert_eq!(app.donate(31, &key, &other).status, 409, "{other}");
    }
    assert_eq!(app.get("/campaigns/31").body["raised_cents"], again.body["raised_cents"]);
}

#[test]
fn a_donation_that_cannot_be_booked_is_the_senders_mistake() {
    let app = app();
    let refused = |key: &str, donation: Value| {
        let answer = app.donate(32, key, &donation);
        assert!((400..500).contains(&answer.status), "{answer:?}");
    };
    for amount in [0, -1, i64::MAX] {
        refused(&key("amount"), json!({ "donor": "Ada", "amount_cents": amount }));
    }
    for donor in [String::new(), "A\0da".into(), "x".repeat(1_000), "x".repeat(1_000_000)] {
        refused(&key("donor"), json!({ "donor": donor, "amount_cents": 1 }));
    }
    // No two letters of it alike, or the database would press it into its index.
    let long: String = (0..3_000_u32).map(|n| char::from(b'!' + (n * n * 31 % 89) as u8)).collect();
    for key in ["", &long] {
        refused(key, json!({ "donor": "Ada", "amount_cents": 1 }));
    }
}

#[test]
fn a_search_for_what_no_server_can_look_for_is_the_senders_mistake() {
    let app = app();
    let many: String = (0..1_500).map(|n| format!("w{n}+")).collect();
    for words in ["%00", "a%00b", &many] {
        let answer = app.get(&format!("/campaigns?q={words}"));
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    // Nor is any of it taken for part of a query.
    for words in ["%22%7D%7D", "';DROP+TABLE+campaigns--", "%22+%5C", "*:*", "%26%7C!()"] {
        assert_eq!(app.get(&format!("/campaigns?q={words}")).status, 200, "{words}");
    }
}

#[test]
fn a_search_is_answered_while_the_index_is_not_there_yet() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // A cluster that has lost its indices, and is not able to make any.
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || nothing_there(&stream));
        }
    });
    let variables = [("OPENSEARCH_URL", &*url), ("OPENSEARCH_CA_FILE", "")];
    let app = App::start(&variables, "/health", |answer| answer.status == 200);
    let found = app.get("/campaigns?q=solar");
    assert_eq!((found.status, &found.body["degraded"]), (200, &Value::Bool(true)), "{found:?}");
    assert!(!found.body["campaigns"].as_array().unwrap().is_empty(), "{found:?}");
}

fn nothing_there(mut stream: &TcpStream) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let body = r#"{"error":{"type":"index_not_found_exception"},"status":404}"#;
    let body = if request.starts_with("HEAD") { "" } else { body };
    let answer = format!(
        "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes());
}

#[test]
fn a_reader_slower_than_a_donation_does_not_bring_the_old_sum_back() {
    let redis = std::env::var("TEST_REDIS_PLAIN_URL").expect("set by `cargo xtask test`");
    let (credentials, place) = redis.rsplit_once('@').unwrap();
    let (server, database) = place.split_once('/').unwrap();
    let password = credentials.rsplit_once(':').unwrap().1;
    // Between the service and Redis: what a reader tells the cache is held up until it is released.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("{credentials}@{}/{database}", listener.local_addr().unwrap());
    let ((held, is_held), (release, released)) = (mpsc::channel(), mpsc::channel::<()>());
    let gate = Arc::new(Mutex::new((held, released)));
    let to = server.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (server, gate) = (TcpStream::connect(&to).unwrap(), Arc::clone(&gate));
            let (replies, answered) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || pass_on(&replies, &answered, |_| ()));
            thread::spawn(move || {
                pass_on(&client, &server, |command| {
                    if command.contains("campaign:33") && command.contains("raised_cents") {
                        let (held, released) = &*gate.lock().unwrap();
                        let _ = held.send(());
                        let _ = released.recv();
                    }
                });
            });
        }
    });
    let ready = |answer: &Answer| answer.status == 200;
    let app = App::start(&[("REDIS_URL", &url), ("REDIS_CA_FILE", "")], "/ready", ready);

    let mut direct = TcpStream::connect(server).unwrap();
    direct.write_all(format!("AUTH {password}\r\nDEL campaign:33\r\nQUIT\r\n").as_bytes()).unwrap();
    direct.read_to_end(&mut Vec::new()).unwrap();

    let donated = thread::scope(|scope| {
        let reader = scope.spawn(|| app.get("/campaigns/33"));
        is_held.recv_timeout(Duration::from_secs(10)).unwrap();
        let donation = json!({ "donor": "Ada", "amount_cents": 1 });
        let donated = app.donate(33, &key("race"), &donation);
        drop(release);
        assert_eq!(reader.join().unwrap().status, 200);
        donated
    });
    assert_eq!(app.get("/campaigns/33").body["raised_cents"], donated.body["raised_cents"]);
}

fn pass_on(mut from: &TcpStream, mut to: &TcpStream, seen: impl Fn(&str)) {
    let mut bytes = [0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        seen(&String::from_utf8_lossy(&bytes[..count]));
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
