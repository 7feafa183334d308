//! The managers of this process, built from the environment on first use, or from [`init`].

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use resilience_core::settings::ConfigError;
use resilience_core::{CircuitRegistry, Deadline, Drained, Health};
use tokio::runtime::Handle;

static STATE: Mutex<State> = Mutex::new(State::new());

/// What the managers of this process are built from. What is `None` comes from the environment,
/// when first used.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Config {
    /// PostgreSQL.
    #[cfg(feature = "postgres")]
    pub database: Option<conn_postgres::DatabaseConfig>,
    /// Redis.
    #[cfg(feature = "redis")]
    pub redis: Option<conn_redis::RedisConfig>,
    /// OpenSearch.
    #[cfg(feature = "opensearch")]
    pub opensearch: Option<conn_opensearch::OpenSearchConfig>,
    /// Where services are: an entry `database`, `redis` or `opensearch` stands in for the hosts of that URL.
    #[cfg(feature = "discovery")]
    pub services: Option<discovery::ServiceRegistry>,
    /// What watches them: for a version, a readiness policy or alert handlers of the application's own.
    /// Build it with [`runtime`](Self::runtime), or one that lives as long as the process.
    #[cfg(feature = "monitoring")]
    pub monitoring: Option<monitoring::MonitoringManager>,
    /// Where sockets are opened and tasks run; default: a runtime of one thread that lives as long as
    /// the process. Give [`Handle::current`] of a runtime that does so too to save the hop between them.
    pub runtime: Option<Handle>,
}

impl Config {
    /// All of it from the environment, so that everything wrong with it is known before anything is used.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong, in every section.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(None)
    }

    /// The same, with `file` (TOML, YAML or JSON) under the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong, in every section.
    pub fn from_file(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read(Some(file.as_ref()))
    }

    fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut wrong = Vec::new();
        let mut config = Self::default();
        #[cfg(feature = "postgres")]
        {
            use conn_postgres::DatabaseConfig;
            config.database = keep(
                file.map_or_else(DatabaseConfig::from_env, DatabaseConfig::from_file),
                &mut wrong,
            );
        }
        #[cfg(feature = "redis")]
        {
            use conn_redis::RedisConfig;
            config.redis =
                keep(file.map_or_else(RedisConfig::from_env, RedisConfig::from_file), &mut wrong);
        }
        #[cfg(feature = "opensearch")]
        {
            use conn_opensearch::OpenSearchConfig;
            let read = file.map_or_else(OpenSearchConfig::from_env, OpenSearchConfig::from_file);
            config.opensearch = keep(read, &mut wrong);
        }
        // Read when first used; what is wrong with it is told now.
        #[cfg(feature = "discovery")]
        wrong.extend(discovery::ServiceRegistry::new().check_env().err());
        #[cfg(feature = "monitoring")]
        wrong.extend(crate::watch::Pace::from_env().err());
        match wrong.into_iter().reduce(ConfigError::and) {
            None => Ok(config),
            Some(error) => Err(error),
        }
    }
}

fn keep<T>(read: Result<T, ConfigError>, wrong: &mut Vec<ConfigError>) -> Option<T> {
    read.map_err(|error| wrong.push(error)).ok()
}

/// Why a manager of this process could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Its settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// [`init`] came after a manager was built: it would have no effect on it.
    #[error("init was called after first use: call it before any get_… function")]
    AlreadyInUse,
    /// The thread that runs background work could not be started.
    #[error("the background runtime cannot be started: {0}")]
    Runtime(std::io::ErrorKind),
    /// What is to be watched cannot be.
    #[cfg(feature = "monitoring")]
    #[error(transparent)]
    Monitoring(#[from] monitoring::InvalidMonitoring),
}

/// Sets what the managers of this process are built from. Connects nothing.
///
/// # Errors
///
/// [`SetupError::AlreadyInUse`] once a manager was built, that of the monitoring included, or after another `init`.
pub fn init(config: Config) -> Result<(), SetupError> {
    let mut state = lock();
    if state.in_use {
        return Err(SetupError::AlreadyInUse);
    }
    #[cfg(feature = "monitoring")]
    if let Some(manager) = &config.monitoring {
        crate::watch::adopt(manager);
    }
    state.in_use = true;
    state.config = Some(config);
    Ok(())
}

struct State {
    in_use: bool,
    config: Option<Config>,
    #[cfg(feature = "discovery")]
    services: Option<discovery::ServiceRegistry>,
    #[cfg(feature = "postgres")]
    database: Option<conn_postgres::DatabaseManager>,
    #[cfg(feature = "redis")]
    redis: Option<conn_redis::RedisManager>,
    #[cfg(feature = "opensearch")]
    opensearch: Option<conn_opensearch::OpenSearchManager>,
}

impl State {
    const fn new() -> Self {
        Self {
            in_use: false,
            config: None,
            #[cfg(feature = "discovery")]
            services: None,
            #[cfg(feature = "postgres")]
            database: None,
            #[cfg(feature = "redis")]
            redis: None,
            #[cfg(feature = "opensearch")]
            opensearch: None,
        }
    }

    fn runtime(&self) -> Result<Handle, SetupError> {
        match self.config.as_ref().and_then(|config| config.runtime.clone()) {
            Some(runtime) => Ok(runtime),
            None => crate::runtime::background().map_err(|error| SetupError::Runtime(error.kind())),
        }
    }

    /// Where the service `name` is, if discovery knows it.
    #[cfg(feature = "discovery")]
    fn endpoints(
        &mut self,
        name: &str,
    ) -> Result<Option<resilience_core::WatchedEndpoints>, SetupError> {
        if let Some(services) = &self.services {
            return Ok(services.endpoints(name).ok());
        }
        let services = match self.config.as_ref().and_then(|config| config.services.clone()) {
            Some(services) => services,
            None => {
                let runtime = self.runtime()?;
                let services = discovery::ServiceRegistry::builder().runtime(runtime).build()?;
                services.register_env()?;
                services
            }
        };
        Ok(self.services.insert(services).endpoints(name).ok())
    }

    #[cfg(not(feature = "discovery"))]
    fn endpoints(
        &mut self,
        _name: &str,
    ) -> Result<Option<resilience_core::WatchedEndpoints>, SetupError> {
        Ok(None)
    }
}

/// Where the monitoring of this process runs. From now on, [`init`] comes too late.
#[cfg(feature = "monitoring")]
pub(crate) fn claim_runtime() -> Result<Handle, SetupError> {
    let mut state = lock();
    let runtime = state.runtime()?;
    state.in_use = true;
    Ok(runtime)
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Defines the accessors of one backend: its manager, made once per process, and its health.
macro_rules! manager {
    ($field:ident: $manager:ty, $config:ty, $get:ident, $health:ident, $what:literal, $variable:literal) => {
        #[doc = concat!("The ", $what, " manager of this process, made on first use from [`init`]'s configuration or from `", $variable, "` and its like. Connects nothing; a failure is not remembered.")]
        ///
        /// # Errors
        ///
        /// [`SetupError`] with all that is wrong with the settings.
        pub fn $get() -> Result<$manager, SetupError> {
            let mut state = lock();
            if let Some(manager) = &state.$field {
                return Ok(manager.clone());
            }
            let config = match state.config.as_ref().and_then(|config| config.$field.clone()) {
                Some(config) => config,
                None => <$config>::from_env()?,
            };
            let config = config.runtime(state.runtime()?);
            let manager = match state.endpoints(stringify!($field))? {
                Some(endpoints) => <$manager>::connect_to(config, endpoints)?,
                None => <$manager>::connect(config)?,
            };
            CircuitRegistry::global().insert(manager.breaker().clone());
            state.in_use = true;
            state.$field = Some(manager.clone());
            Ok(manager)
        }

        #[doc = concat!("How ", $what, " is, by asking it now. Wrong settings make it unhealthy, with the reason.")]
        ///
        /// # Cancel safety
        ///
        /// Dropping the future leaves nothing behind.
        pub async fn $health() -> Health {
            match $get() {
                Ok(manager) => manager.health().await,
                Err(error) => Health::unhealthy(std::time::Duration::ZERO, error.to_string()),
            }
        }
    };
}

#[cfg(feature = "postgres")]
manager!(
    database: conn_postgres::DatabaseManager, conn_postgres::DatabaseConfig,
    get_database, get_database_health, "PostgreSQL", "DATABASE_URL"
);
#[cfg(feature = "redis")]
manager!(
    redis: conn_redis::RedisManager, conn_redis::RedisConfig,
    get_redis_client, get_redis_health, "Redis", "REDIS_URL"
);
#[cfg(feature = "opensearch")]
manager!(
    opensearch: conn_opensearch::OpenSearchManager, conn_opensearch::OpenSearchConfig,
    get_opensearch_client, get_opensearch_health, "OpenSearch", "OPENSEARCH_URL"
);

/// Drains every manager of this process, all at once, by `deadline`. They take no new calls after.
///
/// # Cancel safety
///
/// Dropping the future leaves them refusing; call it again to wait on.
pub async fn drain(deadline: Deadline) {
    #[cfg(feature = "postgres")]
    let database = lock().database.clone();
    #[cfg(feature = "redis")]
    let redis = lock().redis.clone();
    #[cfg(feature = "opensearch")]
    let opensearch = lock().opensearch.clone();
    tokio::join!(
        async {
            #[cfg(feature = "postgres")]
            if let Some(manager) = database {
                told("database", manager.drain(deadline).await);
            }
        },
        async {
            #[cfg(feature = "redis")]
            if let Some(manager) = redis {
                told("redis", manager.drain(deadline).await);
            }
        },
        async {
            #[cfg(feature = "opensearch")]
            if let Some(manager) = opensearch {
                told("opensearch", manager.drain(deadline).await);
            }
        },
    );
}

fn told(name: &str, Drained { abandoned, .. }: Drained) {
    if abandoned > 0 {
        tracing::warn!(target: "shared_external::drain", name, abandoned, "calls still running are abandoned");
    } else {
        tracing::info!(target: "shared_external::drain", name, "drained");
    }
}
