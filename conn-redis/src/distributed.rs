//! Opinions of many processes in Redis, for an exchange of them.
//!
//! Of each circuit two sorted sets are kept, one of the processes that have an opinion and one of those
//! that have it open, by the time at which the opinion lapses: the server's time, so that the clocks of
//! the processes need not agree. Both have one hash tag, and no command names those of two circuits, so
//! that a cluster can hold them anywhere.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::{Pipeline, RedisError, Script, cmd};
use resilience_core::{Call, Opinion, OpinionStore, ProcessId, StoreError, Tally};

use crate::conn::RedisConn;
use crate::error::Error;
use crate::manager::RedisManager;

/// Notes one opinion, forgets those that have lapsed, and counts the others. On the server, so that it
/// answers two numbers, however many processes there are. Needs Redis 5.
static SPEAK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local known, open = KEYS[1], KEYS[2]
        local process, is_open, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
        local time = redis.call('TIME')
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        redis.call('ZADD', known, now + ttl, process)
        if is_open == '1' then
            redis.call('ZADD', open, now + ttl, process)
        else
            redis.call('ZREM', open, process)
        end
        local counts = {}
        for place, key in ipairs(KEYS) do
            redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
            redis.call('PEXPIRE', key, ttl)
            counts[place] = redis.call('ZCARD', key)
        end
        return counts
        ",
    )
});

/// A store of opinions in Redis, for an [`Exchange`](resilience_core::Exchange).
///
/// An exchange is one round trip through the manager's pipeline, with its timeouts and its breaker; after
/// a restart of the server, once, it is three. It is not retried by the manager where it may have been
/// heard: the next is due soon enough.
///
/// Give it a manager of its own where Redis serves calls too, so that it takes no place in their pool,
/// none of their budget, and its failures do not count for their circuit.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use conn_redis::{RedisConfig, RedisManager, RedisOpinions};
/// use resilience_core::Exchange;
///
/// let config = RedisConfig::builder("redis://localhost")
///     .name("opinions")
///     .max_connections(2)
///     .max_retries(0)
///     .reset_timeout(Duration::from_secs(5));
/// let store = RedisOpinions::new(RedisManager::connect(config.build()?)?, "shop");
/// let exchange = Exchange::builder(store).build()?;
/// tokio::spawn(async move { exchange.run().await });
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisOpinions {
    redis: RedisManager,
    group: Arc<str>,
}

impl RedisOpinions {
    /// A store in the Redis of `redis`. Processes that say the same `group` hear each other: those of one
    /// service, or of all that mean the same by the names of their circuits.
    pub fn new(redis: RedisManager, group: impl Into<Arc<str>>) -> Self {
        Self { redis, group: group.into() }
    }

    fn speak(&self, process: ProcessId, opinions: &[Opinion], ttl: Duration) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(opinions.len());
        for Opinion { circuit, is_open } in opinions {
            let key = format!("circuits:{{{}:{circuit}}}", self.group);
            let mut speak = cmd("EVALSHA");
            speak
                .arg(SPEAK.get_hash())
                .arg(2)
                .arg(format!("{key}:known"))
                .arg(format!("{key}:open"));
            speak.arg(process.to_string()).arg(u8::from(*is_open));
            speak.arg(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
            pipeline.add_command(speak);
        }
        pipeline
    }
}

#[async_trait]
impl OpinionStore for RedisOpinions {
    async fn exchange(
        &self,
        process: ProcessId,
        opinions: &[Opinion],
        ttl: Duration,
    ) -> Result<Vec<Tally>, StoreError> {
        let speak = &self.speak(process, opinions, ttl);
        let exchange = |mut conn: RedisConn| async move {
            match speak.query_async::<Vec<(u64, u64)>>(&mut conn).await {
                Err(error) if is_not_loaded(&error) => {
                    SPEAK.load_async(&mut conn).await?;
                    Ok(speak.query_async(&mut conn).await?)
                }
                answer => answer.map_err(Error::from),
            }
        };
        let tallies = self.redis.call(Call::write().named("opinions"), exchange).await;
        let tallies = tallies.map_err(StoreError::new)?.into_iter();
        Ok(tallies.map(|(processes, open)| Tally { processes, open }).collect())
    }
}

impl fmt::Debug for RedisOpinions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { redis, group } = self;
        f.debug_struct("RedisOpinions").field("redis", redis).field("group", group).finish()
    }
}

fn is_not_loaded(error: &RedisError) -> bool {
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|errors| errors.iter().any(|(_, error)| error.code() == "NOSCRIPT"))
}
