//! Fear: a new password or certificate needs a restart, or an outage.

mod support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conn_postgres::{Conn, DatabaseConfig, DatabaseConfigBuilder, DatabaseManager, Error};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use resilience_core::{
    CallError, CircuitState, CredentialError, CredentialProvider, Credentials, Deadline,
    FileCredentials, Replay, Verdict,
};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use support::throwaway::Throwaway;
use support::{admin, eventually, server, variable, within};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// A role of the test's own, which the server forgets with it.
struct Role(String);

impl Role {
    async fn new(password: &str) -> Self {
        let role = Self(format!("rotating_{}_{:x}", std::process::id(), fastrand::u32(..)));
        run(&format!("CREATE ROLE {} LOGIN PASSWORD '{password}'", role.0)).await;
        role
    }

    async fn change(&self, password: &str) {
        run(&format!("ALTER ROLE {} PASSWORD '{password}'", self.0)).await;
    }

    /// All its connections have been opened from now on.
    async fn is_used_anew(&self) {
        let mut admin = admin().await;
        let now = sqlx::query_scalar("SELECT clock_timestamp()::text");
        let now: String = now.fetch_one(&mut admin).await.unwrap();
        let sql = "SELECT coalesce(min(backend_start) > $1::timestamptz, false) \
                   FROM pg_stat_activity WHERE usename = $2";
        eventually("all connections are new", async || {
            let anew = sqlx::query_scalar(sql).bind(&now).bind(&self.0);
            anew.fetch_one(&mut admin).await.unwrap()
        })
        .await;
    }

    async fn forget(self) {
        let Self(name) = self;
        run(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'"
        ))
        .await;
        run(&format!("DROP ROLE {name}")).await;
    }

    /// Its URL names no password.
    fn config(&self) -> DatabaseConfigBuilder {
        DatabaseConfig::builder(format!("postgresql://{}@{}/app", self.0, server()))
            .ca_file(variable("DATABASE_CA_FILE"))
            .pool_size(4)
            .max_overflow(0)
            .max_retries(0)
            // Each connection lives for a few calls, so that there is always one being opened.
            .max_lifetime(Duration::from_millis(20))
    }
}

async fn run(sql: &str) {
    admin().await.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// Gives what it is told to, and counts.
#[derive(Clone, Default)]
struct Vault(Arc<VaultState>);

#[derive(Default)]
struct VaultState {
    password: Mutex<String>,
    asked: AtomicUsize,
    hangs: AtomicBool,
    panics: AtomicBool,
}

impl Vault {
    fn with(password: &str) -> Self {
        let vault = Self::default();
        vault.set(password);
        vault
    }

    fn set(&self, password: &str) {
        *self.0.password.lock().unwrap() = password.to_owned();
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// It was asked and the answer was tried.
    async fn is_asked_again(&self) {
        let before = self.asked();
        eventually("it is asked again", async || self.asked() > before + 2).await;
    }
}

#[async_trait::async_trait]
impl CredentialProvider for Vault {
    async fn credentials(&self, _: Deadline) -> Result<Credentials, CredentialError> {
        let state = &*self.0;
        state.asked.fetch_add(1, Ordering::Relaxed);
        if state.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        assert!(!state.panics.load(Ordering::Relaxed), "the vault's own trouble");
        Ok(Credentials::token(&**state.password.lock().unwrap()))
    }

    fn period(&self) -> Option<Duration> {
        Some(Duration::from_millis(40))
    }
}

/// Calls without end, and what became of them.
struct Load {
    calls: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(db: &DatabaseManager) -> Self {
        let (calls, failed) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<_>>>::default());
        let task = |_| {
            let (db, calls, failed) = (db.clone(), Arc::clone(&calls), Arc::clone(&failed));
            tokio::spawn(async move {
                loop {
                    match one(&db).await {
                        Ok(_) => _ = calls.fetch_add(1, Ordering::Relaxed),
                        Err(error) => failed.lock().unwrap().push(error.to_string()),
                    }
                    sleep(Duration::from_millis(1)).await;
                }
            })
        };
        let tasks = (0..3).map(task).collect();
        Self { calls, failed, tasks }
    }

    /// Some more calls have been made, and none has failed.
    async fn goes_on(&self) {
        let before = self.calls.load(Ordering::Relaxed);
        eventually("calls go on", async || {
            let failed = self.failed.lock().unwrap();
            assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
            self.calls.load(Ordering::Relaxed) > before + 60
        })
        .await;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The backend that answers.
async fn one(db: &DatabaseManager) -> Result<i32, CallError<Error>> {
    db.read(async |mut conn: Conn| pid(&mut conn).await).await
}

async fn pid(conn: &mut Conn) -> Result<i32, Error> {
    Ok(sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(conn).await?)
}

async fn is_there(pid: i32) -> bool {
    let sql = "SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = $1";
    sqlx::query_scalar(sql).bind(pid).fetch_one(&mut admin().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_rotates_under_load_and_no_call_fails() {
    let role = Role::new("old").await;
    let vault = Vault::with("old");
    let config = role.config().credentials(vault.clone()).build().unwrap();
    let db = DatabaseManager::connect(config).unwrap();
    let load = Load::on(&db);
    load.goes_on().await;
    for password in ["second", "third", "fourth"] {
        vault.set(password);
        // It is ahead of the server, which refuses it still.
        vault.is_asked_again().await;
        role.change(password).await;
        role.is_used_anew().await;
        load.goes_on().await;
    }
    drop(load);
    drop(db);
    role.forget().await;
}

#[tokio::test]
async fn a_connection_in_use_is_not_cut_and_closes_when_it_comes_back() {
    let role = Role::new("old").await;
    let vault = Vault::with("old");
    let config = role.config().max_lifetime(Duration::from_secs(600));
    let db = DatabaseManager::connect(config.credentials(vault.clone()).build().unwrap()).unwrap();
    let (mut used, mut idle) = (db.acquire().await.unwrap(), db.acquire().await.unwrap());
    let (before, idle_one) = (pid(&mut used).await.unwrap(), pid(&mut idle).await.unwrap());
    drop(idle);
    role.change("new").await;
    vault.set("new");
    eventually("the idle one is closed", async || !is_there(idle_one).await).await;
    assert_eq!(pid(&mut used).await.unwrap(), before, "it was cut in use");
    drop(used);
    eventually("it is closed", async || !is_there(before).await).await;

    let after = one(&db).await.unwrap();
    vault.is_asked_again().await;
    assert_eq!(one(&db).await.unwrap(), after, "what is new is closed again and again");
    drop(db);
    role.forget().await;
}

#[tokio::test]
async fn a_wrong_new_password_leaves_the_good_one_in_use() {
    let role = Role::new("good").await;
    let vault = Vault::with("good");
    let config = role.config().max_lifetime(Duration::from_secs(600));
    let db = DatabaseManager::connect(config.credentials(vault.clone()).build().unwrap()).unwrap();
    let before = one(&db).await.unwrap();
    vault.set("wrong");
    vault.is_asked_again().await;
    assert_eq!(one(&db).await.unwrap(), before, "a good connection was given up for nothing");
    let (first, second) = tokio::join!(db.acquire(), db.acquire());
    assert_ne!(pid(&mut first.unwrap()).await.unwrap(), pid(&mut second.unwrap()).await.unwrap());
    drop(db);
    role.forget().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_hangs_or_panics_harms_no_call() {
    let role = Role::new("good").await;
    let vault = Vault::with("good");
    let config = role.config().connect_timeout(Duration::from_secs(2));
    let db = DatabaseManager::connect(config.credentials(vault.clone()).build().unwrap()).unwrap();
    let load = Load::on(&db);
    load.goes_on().await;
    for trouble in [&vault.0.panics, &vault.0.hangs] {
        let asked = vault.asked();
        trouble.store(true, Ordering::Relaxed);
        eventually("it is asked", async || vault.asked() > asked + 1).await;
        load.goes_on().await;
        trouble.store(false, Ordering::Relaxed);
    }
    drop(load);

    // Refused now, and nobody to ask: the refusal comes back, and soon.
    vault.0.hangs.store(true, Ordering::Relaxed);
    role.change("new").await;
    let mut refused = None;
    eventually("a login is refused", async || {
        refused = within(Duration::from_secs(4), one(&db)).await.err();
        refused.is_some()
    })
    .await;
    let error = refused.unwrap();
    assert_eq!(error.inner().and_then(Error::code), Some("28P01"), "{error}");
    drop(db);
    role.forget().await;
}

#[tokio::test]
async fn refused_calls_are_no_storm_of_logins_or_of_questions() {
    let role = Role::new("good").await;
    let vault = Vault::with("hunter2");
    let provider = vault.clone();
    let asked = resilience_core::FnCredentials::new(move |by| {
        let vault = provider.clone();
        async move { vault.credentials(by).await }
    });
    let db = DatabaseManager::connect(role.config().credentials(asked).build().unwrap()).unwrap();
    let started = Instant::now();
    for _ in 0..40 {
        let error = one(&db).await.unwrap_err();
        let CallError::Inner(failed) = &error else { panic!("{error}") };
        assert_eq!((failed.verdict, failed.attempts), (Verdict::caller(Replay::Never), 1));
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    }
    // One for the first credentials, then 100 ms at least between two.
    let most = 2 + started.elapsed().as_millis() as usize / 100;
    assert!((2..=most).contains(&vault.asked()), "{} of {most}", vault.asked());
    drop(db);
    role.forget().await;
}

#[tokio::test]
async fn without_first_credentials_the_provider_is_blamed_and_not_the_server() {
    let provider = FileCredentials::new("/no/such/password");
    let config = DatabaseConfig::builder(format!("postgresql://app@{}/app", server()))
        .ca_file(variable("DATABASE_CA_FILE"))
        .credentials(provider)
        .max_retries(0)
        .fail_max(1);
    let db = DatabaseManager::connect(config.build().unwrap()).unwrap();
    let error = one(&db).await.unwrap_err();
    assert!(matches!(error.inner(), Some(Error::Credentials(_))), "{error}");
    assert!(error.to_string().contains("/no/such/password cannot be read"), "{error}");
    assert_eq!(db.breaker().state(), CircuitState::Closed);
}

/// An authority, and files as it signs them.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), ca }
    }

    /// A certificate for that name, good for a server of this machine and for a client, and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    async fn rules(&self, server: &Throwaway) {
        let (cert, key) = self.sign("server");
        server.put("ca.pem", &self.ca);
        server.put("server.pem", &cert);
        server.put("server.key", &key);
        let mut admin = PgConnection::connect(&server.url()).await.unwrap();
        admin.execute("SELECT pg_reload_conf()").await.unwrap();
    }

    fn writes(&self, dir: &Dir) {
        let (cert, key) = self.sign("app");
        std::fs::write(dir.0.join("ca.pem"), &self.ca).unwrap();
        std::fs::write(dir.0.join("client.pem"), cert).unwrap();
        std::fs::write(dir.0.join("client.key"), key).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_authority_on_both_sides_is_taken_up_under_load_and_no_call_fails() {
    let mut server = Throwaway::new();
    server.start().await;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let mut admin = PgConnection::connect(&server.url()).await.unwrap();
    let hba = "host all postgres 127.0.0.1/32 trust\nhostssl all app 127.0.0.1/32 cert\n";
    server.put("data/pg_hba.conf", hba);
    old.rules(&server).await;
    for sql in [
        "CREATE ROLE app LOGIN",
        "ALTER SYSTEM SET ssl_ca_file = '../ca.pem'",
        "ALTER SYSTEM SET ssl_cert_file = '../server.pem'",
        "ALTER SYSTEM SET ssl_key_file = '../server.key'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    ] {
        admin.execute(sql).await.unwrap();
    }
    let dir = Dir::new();
    old.writes(&dir);
    let url = format!("postgresql://app@127.0.0.1:{}/postgres", server.port);
    let config = DatabaseConfig::builder(url)
        .ca_file(dir.0.join("ca.pem"))
        .client_cert_file(dir.0.join("client.pem"))
        .client_key_file(dir.0.join("client.key"))
        .pool_size(4)
        .max_overflow(0)
        .max_retries(0)
        .max_lifetime(Duration::from_millis(20))
        .build()
        .unwrap();
    let db = DatabaseManager::connect(config).unwrap();
    eventually("it lets us in", async || one(&db).await.is_ok()).await;
    let load = Load::on(&db);
    load.goes_on().await;

    new.writes(&dir);
    load.goes_on().await;
    new.rules(&server).await;
    load.goes_on().await;
    eventually("the server sees the new certificate", async || {
        let sql = "SELECT issuer_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let issuer: String = sqlx::query_scalar(sql).fetch_one(&db).await.unwrap();
        issuer == "/CN=new"
    })
    .await;
    load.goes_on().await;
    drop(load);
}

struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let name = format!("rotation-{}-{:x}", std::process::id(), fastrand::u32(..));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
