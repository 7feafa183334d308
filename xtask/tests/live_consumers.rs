//! Consumers outside this workspace: each depends on one connector alone, and reads from its live server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::checkout::root;

/// An application in a directory of its own, as `cargo add` would leave it.
struct Consumer {
    /// Which of ours it reads by.
    name: &'static str,
    /// What tells it from others that read by the same.
    purpose: &'static str,
    /// What it depends on of ours, beside a path.
    dependency: &'static str,
    /// Other lines of its `[dependencies]`.
    others: &'static str,
    main: &'static str,
    /// Words of its answer that only the server can have given.
    prints: &'static str,
}

const POSTGRES: Consumer = Consumer {
    name: "conn-postgres",
    purpose: "reader",
    dependency: "{ path = PATH }",
    others: "sqlx = { version = \"0.9\", default-features = false, features = [\"postgres\"] }",
    main: r#"
use conn_postgres::{DatabaseConfig, DatabaseManager};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let db = DatabaseManager::connect(DatabaseConfig::from_env()?)?;
    let (user, sum): (String, i32) = sqlx::query_as("SELECT current_user::text, 40 + 2").fetch_one(&db).await?;
    println!("{user} says {sum}, {:?}", db.health().await.status);
    Ok(())
}
"#,
    prints: "app says 42, Healthy",
};

/// sqlx's macros look at the database while it is compiled.
const MACROS: Consumer = Consumer {
    name: "conn-postgres",
    purpose: "macros",
    dependency: "{ path = PATH }",
    others: "sqlx = { version = \"0.9\", default-features = false, features = [\"macros\", \"postgres\", \"runtime-tokio\", \"tls-rustls-aws-lc-rs\"] }",
    main: r###"
use conn_postgres::{DatabaseConfig, DatabaseManager};

struct Role {
    name: String,
    limit: i32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let db = DatabaseManager::connect(DatabaseConfig::from_env()?)?;
    let sql = sqlx::query_as!(Role, r##"SELECT rolname::text AS "name!", rolconnlimit AS "limit!" FROM pg_roles WHERE rolname = $1"##, "app");
    let role = sql.fetch_one(&db).await?;
    let mut tx = db.begin().await?;
    let sum = sqlx::query_scalar!(r##"SELECT $1::int4 + 2 AS "sum!""##, 40).fetch_one(&mut *tx).await?;
    let row = sqlx::query!(r##"SELECT 1.5::float8 AS "half!""##).fetch_one(&mut tx).await?;
    tx.commit().await?;
    println!("{} has {} and says {sum}, {}", role.name, role.limit, row.half);
    Ok(())
}
"###,
    prints: "app has -1 and says 42, 1.5",
};

const REDIS: Consumer = Consumer {
    name: "conn-redis",
    purpose: "reader",
    dependency: "{ path = PATH }",
    others: "",
    main: r#"
use conn_redis::{RedisConfig, RedisManager, redis};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut redis = RedisManager::connect(RedisConfig::from_env()?)?;
    let said: String = redis::cmd("ECHO").arg(40 + 2).query_async(&mut redis).await?;
    println!("redis says {said}, {:?}", redis.health().await.status);
    Ok(())
}
"#,
    prints: "redis says 42, Healthy",
};

const OPENSEARCH: Consumer = Consumer {
    name: "conn-opensearch",
    purpose: "reader",
    dependency: "{ path = PATH }",
    others: "serde_json = \"1\"",
    main: r#"
use conn_opensearch::{OpenSearchConfig, OpenSearchManager, json};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let search = OpenSearchManager::connect(OpenSearchConfig::from_env()?)?;
    let info: serde_json::Value = search.read(|node| async move { json(node.info().send().await?).await }).await?;
    println!("{} says hello, {:?}", info["version"]["distribution"], search.health().await.status);
    Ok(())
}
"#,
    prints: "\"opensearch\" says hello, Healthy",
};

const FACADE: Consumer = Consumer {
    name: "shared-external",
    purpose: "reader",
    dependency: "{ path = PATH, features = [\"redis\"] }",
    others: "",
    main: r#"
use shared_external::redis::redis::cmd;
use shared_external::{get_redis_client, get_redis_health};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut redis = get_redis_client()?;
    let said: String = cmd("ECHO").arg(40 + 2).query_async(&mut redis).await?;
    println!("the facade says {said}, {:?}", get_redis_health().await.status);
    Ok(())
}
"#,
    prints: "the facade says 42, Healthy",
};

#[test]
fn postgres_is_read_by_its_connector_alone() {
    POSTGRES.run();
}

#[test]
fn sqlx_macros_compile_and_run_on_the_connector_unchanged() {
    MACROS.run();
}

#[test]
fn redis_is_read_by_its_connector_alone() {
    REDIS.run();
}

#[test]
fn opensearch_is_read_by_its_connector_alone() {
    OPENSEARCH.run();
}

#[test]
fn redis_is_read_by_the_facade_with_one_feature() {
    FACADE.run();
}

impl Consumer {
    /// Builds it and runs it against the live server.
    fn run(&self) {
        for variable in ["DATABASE_URL", "REDIS_URL", "OPENSEARCH_URL"] {
            assert!(
                std::env::var_os(variable).is_some(),
                "{variable} is set by `cargo xtask test`"
            );
        }
        let dir = Scratch::new(&self.package());
        self.write(&dir.0);
        let cargo = std::env::var_os("CARGO").expect("cargo runs the tests");
        let mut command = Command::new(cargo);
        // Whatever it needs was fetched for this workspace, at these versions.
        command.args(["run", "--quiet", "--offline"]).current_dir(&dir.0);
        command.env("CARGO_TARGET_DIR", root().join("target/consumers"));
        if self.purpose == "macros" {
            command.env("DATABASE_URL", database_url());
        }
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} failed: {errors}", self.name);
        let answer = String::from_utf8(output.stdout).unwrap();
        assert_eq!(answer.trim_end(), self.prints, "{errors}");
    }

    fn package(&self) -> String {
        format!("{}-of-{}", self.purpose, self.name)
    }

    fn write(&self, dir: &Path) {
        let name = self.name;
        let path = format!("{:?}", root().join(name));
        let dependency = self.dependency.replace("PATH", &path);
        let manifest = format!(
            "[package]\nname = \"{}\"\nedition = \"2024\"\n\n[workspace]\n\n\
             [dependencies]\n{name} = {dependency}\ntokio = {{ version = \"1\", features = [\"macros\", \"rt-multi-thread\"] }}\n{}\n\n\
             [profile.dev]\ndebug = false\n",
            self.package(),
            self.others
        );
        fs::write(dir.join("Cargo.toml"), manifest).unwrap();
        fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
        fs::create_dir(dir.join("src")).unwrap();
        fs::write(dir.join("src/main.rs"), self.main).unwrap();
    }
}

/// The database's URL as sqlx's macros take it: they know neither SQLAlchemy's scheme nor our variables.
fn database_url() -> String {
    let variable = |name| std::env::var(name).expect("set by `cargo xtask test`");
    let url = variable("DATABASE_URL").replace("+asyncpg", "");
    format!("{url}?sslmode=verify-full&sslrootcert={}", variable("DATABASE_CA_FILE"))
}

/// A directory that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left there harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}
