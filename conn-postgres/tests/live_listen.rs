//! Fear: a listener goes deaf, and nobody is told; or it comes back, and nobody knows what was missed.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use conn_postgres::{DatabaseConfig, DatabaseManager, Error, Heard, Listener};
use futures_util::StreamExt;
use resilience_core::{
    Address, CredentialError, CredentialProvider, Credentials, Deadline, Endpoint, EndpointSet,
};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use support::{
    State, Wire, admin, backends, config_at, eventually, manager, manager_with, server, url_at,
    variable, within,
};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

/// A channel that no other test has.
fn channel() -> String {
    format!("jobs-{}-{:x}", std::process::id(), fastrand::u64(..))
}

async fn notify(admin: &mut PgConnection, channel: &str, payload: &str) {
    let notify = sqlx::query("SELECT pg_notify($1, $2)").bind(channel).bind(payload);
    notify.execute(admin).await.unwrap();
}

async fn next(listener: &mut Listener) -> Heard {
    within(5 * SECOND, listener.recv()).await.expect("the manager does not drain")
}

async fn next_payload(listener: &mut Listener) -> String {
    match next(listener).await {
        Heard::Notification { payload, .. } => payload,
        gap => panic!("{gap:?}"),
    }
}

/// Ends the listener's process at the server, as an administrator would, and waits until it is gone.
async fn cut(admin: &mut PgConnection, name: &str) {
    let sql =
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1";
    sqlx::query(sql).bind(name).execute(admin).await.unwrap();
}

/// A manager whose way to the server can be cut.
async fn wired() -> (DatabaseManager, String, Wire) {
    let wire = Wire::to(server()).await;
    let url = url_at(&format!("localhost:{}", wire.port));
    let (builder, name) = config_at(url);
    let config = builder.connect_timeout(SECOND).max_retries(0).build().unwrap();
    (DatabaseManager::connect(config).unwrap(), name, wire)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_arrives_in_order_whatever_the_name_and_without_a_gap() {
    let (db, name) = manager();
    let mut admin = admin().await;
    let odd = format!("Jo\"bs; SELECT 1/0 -- {}", channel());
    let plain = channel();
    let mut listener = db.listen([&*odd, &*plain]).await.unwrap();
    assert_eq!((listener.trouble(), db.status().in_use), (None, 0));
    assert_eq!(backends(&mut admin, &name).await, 1);
    notify(&mut admin, &odd, "").await;
    notify(&mut admin, &channel(), "not for us").await;
    notify(&mut admin, &plain, &"€".repeat(2_600)).await;
    let from: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut admin).await.unwrap();
    for (expected, said) in [(odd, String::new()), (plain, "€".repeat(2_600))] {
        let Some(Heard::Notification { channel, payload, backend, .. }) = listener.next().await
        else {
            panic!("a gap")
        };
        assert_eq!((&*channel, payload), (&*expected, said));
        assert_eq!(backend, u32::try_from(from).unwrap());
    }
    assert!(timeout(SECOND / 10, listener.recv()).await.is_err(), "there is more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_replaced_and_the_gap_comes_before_what_follows() {
    let (db, name) = manager();
    let (mut admin, channel) = (admin().await, channel());
    let mut listener = db.listen([&*channel]).await.unwrap();
    for round in 0..3 {
        notify(&mut admin, &channel, "before").await;
        assert_eq!(next_payload(&mut listener).await, "before", "round {round}");
        cut(&mut admin, &name).await;
        notify(&mut admin, &channel, "between").await;
        let Heard::Gap { since, lasted, dropped, .. } = next(&mut listener).await else {
            panic!("round {round}: it was not told")
        };
        assert!(lasted < 5 * SECOND && since.elapsed() >= lasted && dropped == 0, "{lasted:?}");
        assert_eq!(listener.trouble(), None);
        notify(&mut admin, &channel, "after").await;
        let mut heard = next_payload(&mut listener).await;
        if heard == "between" {
            // It was back in no time.
            heard = next_payload(&mut listener).await;
        }
        assert_eq!(heard, "after", "round {round}");
    }
    assert_eq!(backends(&mut admin, &name).await, 1, "old connections are left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_out_without_hammering_the_server() {
    let (db, _, wire) = wired().await;
    let (mut admin, channel) = (admin().await, channel());
    let mut listener = db.listen([&*channel]).await.unwrap();
    let before = wire.accepted();
    wire.set(State::Down);
    assert!(timeout(3 * SECOND, listener.recv()).await.is_err(), "it is told before it is over");
    let attempts = wire.accepted() - before;
    assert!((2..40).contains(&attempts), "{attempts} attempts");
    let told = listener.trouble().unwrap();
    assert!(told.starts_with("cannot connect to localhost:"), "{told}");
    assert!(format!("{listener:?}").contains(&told), "{listener:?}");
    wire.set(State::Up);
    let gap = within(10 * SECOND, listener.recv()).await;
    assert!(matches!(gap, Some(Heard::Gap { lasted, .. }) if lasted >= 2 * SECOND), "{gap:?}");
    notify(&mut admin, &channel, "after").await;
    assert_eq!(next_payload(&mut listener).await, "after");
}

#[tokio::test]
async fn a_silent_peer_is_noticed_though_nothing_is_in_flight_and_leaves_nothing_behind() {
    let (db, _, wire) = wired().await;
    let (mut admin, channel) = (admin().await, channel());
    let mut listener = db.listen([&*channel]).await.unwrap();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    wire.set(State::Silent);
    let before = tasks();
    within(11 * SECOND, async {
        while listener.trouble().is_none() {
            sleep(SECOND / 100).await;
        }
    })
    .await;
    // One of each connection on the way through the wire, which is the test's own.
    eventually("its task is gone", async || tasks() <= before + 1).await;
    // What comes through the wire from now on, and not what hangs in it.
    wire.set(State::Down);
    wire.set(State::Up);
    let gap = within(12 * SECOND, listener.recv()).await;
    assert!(matches!(gap, Some(Heard::Gap { lasted, .. }) if lasted >= 5 * SECOND), "{gap:?}");
    notify(&mut admin, &channel, "after").await;
    assert_eq!(next_payload(&mut listener).await, "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_moves_with_its_endpoint_though_the_old_one_still_answers() {
    let (old, new) = (Wire::to(server()).await, Wire::to(server()).await);
    let at = |wire: &Wire| vec![Endpoint::new(Address::new("localhost", wire.port))];
    let (sender, receiver) = watch::channel(EndpointSet::fixed(at(&old)));
    let (config, name) = config_at(variable("DATABASE_URL"));
    let db = DatabaseManager::connect_to(config.build().unwrap(), receiver).unwrap();
    let (mut admin, channel) = (admin().await, channel());
    let mut listener = db.listen([&*channel]).await.unwrap();
    assert_eq!(new.accepted(), 0);
    sender.send_modify(|set| {
        set.endpoints = at(&new).into();
        set.generation += 1;
    });
    assert!(matches!(next(&mut listener).await, Heard::Gap { .. }));
    notify(&mut admin, &channel, "after").await;
    assert_eq!(next_payload(&mut listener).await, "after");
    assert!(new.accepted() > 0);
    eventually("the old one is left", async || backends(&mut admin, &name).await == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_channel_on_a_live_server_is_no_gap() {
    let (db, _) = manager();
    let (mut admin, channel) = (admin().await, channel());
    let mut listener = db.listen([&*channel]).await.unwrap();
    // Two questions and their answers go by.
    assert!(timeout(12 * SECOND, listener.recv()).await.is_err());
    notify(&mut admin, &channel, "late").await;
    assert_eq!(next_payload(&mut listener).await, "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_in_a_select_loses_nothing() {
    let (db, _) = manager();
    let (mut admin, channel) = (admin().await, channel());
    let mut listener = db.listen([&*channel]).await.unwrap();
    let sender = tokio::spawn(async move {
        for number in 0..500 {
            notify(&mut admin, &channel, &number.to_string()).await;
        }
    });
    let mut heard = Vec::new();
    within(20 * SECOND, async {
        while heard.len() < 500 {
            tokio::select! {
                biased;
                () = sleep(Duration::from_micros(fastrand::u64(..300))) => {}
                next = listener.recv() => heard.push(next.unwrap()),
            }
        }
    })
    .await;
    sender.await.unwrap();
    for (number, heard) in heard.iter().enumerate() {
        let said = number.to_string();
        assert!(matches!(heard, Heard::Notification { payload, .. } if *payload == said));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_listen_for_a_while_is_told_how_much_went_by() {
    let (db, _) = manager();
    let (mut admin, channel) = (admin().await, channel());
    let mut listener = db.listen([&*channel]).await.unwrap();
    let many = "SELECT pg_notify($1, n::text) FROM generate_series(1, 5000) n";
    sqlx::query(many).bind(&channel).execute(&mut admin).await.unwrap();
    eventually("all have arrived", async || format!("{listener:?}").contains("dropped: 3976"))
        .await;
    for number in 1..=1024 {
        assert_eq!(next_payload(&mut listener).await, number.to_string());
    }
    let gap = next(&mut listener).await;
    assert!(matches!(gap, Heard::Gap { dropped: 3976, .. }), "{gap:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_and_dropping_end_the_connection_and_what_was_heard_is_still_told() {
    let (db, name) = manager();
    let (mut admin, channel) = (admin().await, channel());
    let dropped = db.listen([&*channel]).await.unwrap();
    let mut listener = db.listen([&*channel]).await.unwrap();
    assert_eq!(backends(&mut admin, &name).await, 2);
    drop(dropped);
    eventually("one is left", async || backends(&mut admin, &name).await == 1).await;
    notify(&mut admin, &channel, "last").await;
    eventually("it was heard", async || format!("{listener:?}").contains("waiting: 1")).await;
    let abandoned = db.drain(Deadline::within(5 * SECOND)).await.abandoned;
    assert_eq!(abandoned, 0, "a listener holds no place");
    eventually("none is left", async || backends(&mut admin, &name).await == 0).await;
    assert_eq!(next_payload(&mut listener).await, "last");
    assert_eq!(within(SECOND, listener.recv()).await, None);
    let refused = db.listen([&*channel]).await.unwrap_err();
    assert!(matches!(refused, Error::Closed { .. }), "{refused}");
}

#[tokio::test]
async fn a_first_connect_that_fails_is_told_within_its_time_and_leaves_no_task() {
    let (db, _, wire) = wired().await;
    wire.set(State::Silent);
    let error = within(2 * SECOND, db.listen(["jobs"])).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
    let (db, _) = manager_with(|it| it.max_retries(0));
    let error = db.listen(["x".repeat(64)]).await.unwrap_err();
    assert!(error.to_string().contains("a name has up to 63"), "{error}");
}

/// Gives the password of the moment.
#[derive(Clone, Default)]
struct Vault(Arc<Mutex<String>>);

#[async_trait::async_trait]
impl CredentialProvider for Vault {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        Ok(Credentials::token(&**self.0.lock().unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_does_not_deafen_a_listener() {
    let (mut admin, channel) = (admin().await, channel());
    let role = format!("listening_{}_{:x}", std::process::id(), fastrand::u32(..));
    let run = async |admin: &mut PgConnection, sql: String| {
        admin.execute(AssertSqlSafe(sql)).await.unwrap();
    };
    run(&mut admin, format!("CREATE ROLE {role} LOGIN PASSWORD 'first'")).await;
    let vault = Vault::default();
    *vault.0.lock().unwrap() = "first".to_owned();
    let config = DatabaseConfig::builder(format!("postgresql://{role}@{}/app", server()))
        .ca_file(variable("DATABASE_CA_FILE"))
        .application_name(&*role)
        .credentials(vault.clone())
        .build();
    let db = DatabaseManager::connect(config.unwrap()).unwrap();
    let mut listener = db.listen([&*channel]).await.unwrap();
    *vault.0.lock().unwrap() = "second".to_owned();
    run(&mut admin, format!("ALTER ROLE {role} PASSWORD 'second'")).await;
    cut(&mut admin, &role).await;
    assert!(matches!(next(&mut listener).await, Heard::Gap { .. }));
    notify(&mut admin, &channel, "after").await;
    assert_eq!(next_payload(&mut listener).await, "after");
    drop((listener, db));
    eventually("it is gone", async || backends(&mut admin, &role).await == 0).await;
    run(&mut admin, format!("DROP ROLE {role}")).await;
}
