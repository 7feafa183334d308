//! What has to be known of Redis commands: which only read, which block, and which leave their mark on
//! the connection.

use deadpool_redis::redis::{Arg, Cmd, Value};

/// Commands that change nothing: they may be repeated. What is not listed is taken for a write.
const READ_ONLY: &[&str] = &[
    "BITCOUNT",
    "BITFIELD_RO",
    "BITPOS",
    "DBSIZE",
    "DUMP",
    "ECHO",
    "EVALSHA_RO",
    "EVAL_RO",
    "EXISTS",
    "EXPIRETIME",
    "FCALL_RO",
    "GEODIST",
    "GEOHASH",
    "GEOPOS",
    "GEORADIUSBYMEMBER_RO",
    "GEORADIUS_RO",
    "GEOSEARCH",
    "GET",
    "GETBIT",
    "GETRANGE",
    "HEXISTS",
    "HGET",
    "HGETALL",
    "HKEYS",
    "HLEN",
    "HMGET",
    "HRANDFIELD",
    "HSCAN",
    "HSTRLEN",
    "HTTL",
    "HPTTL",
    "HVALS",
    "INFO",
    "KEYS",
    "LASTSAVE",
    "LCS",
    "LINDEX",
    "LLEN",
    "LPOS",
    "LRANGE",
    "MGET",
    "OBJECT",
    "PEXPIRETIME",
    "PFCOUNT",
    "PING",
    "PTTL",
    "RANDOMKEY",
    "ROLE",
    "SCAN",
    "SCARD",
    "SDIFF",
    "SINTER",
    "SINTERCARD",
    "SISMEMBER",
    "SMEMBERS",
    "SMISMEMBER",
    "SORT_RO",
    "SRANDMEMBER",
    "SSCAN",
    "STRLEN",
    "SUBSTR",
    "SUNION",
    "TIME",
    "TTL",
    "TYPE",
    "XINFO",
    "XLEN",
    "XPENDING",
    "XRANGE",
    "XREAD",
    "XREVRANGE",
    "ZCARD",
    "ZCOUNT",
    "ZDIFF",
    "ZINTER",
    "ZINTERCARD",
    "ZLEXCOUNT",
    "ZMSCORE",
    "ZRANDMEMBER",
    "ZRANGE",
    "ZRANGEBYLEX",
    "ZRANGEBYSCORE",
    "ZRANK",
    "ZREVRANGE",
    "ZREVRANGEBYLEX",
    "ZREVRANGEBYSCORE",
    "ZREVRANK",
    "ZSCAN",
    "ZSCORE",
    "ZUNION",
];

/// Commands that answer only once something happens, or their own time is over.
const BLOCKING: &[&str] = &[
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "WAIT",
    "WAITAOF",
];

/// Commands after which a connection is not what it was, and nothing short of another login undoes it.
const ALTERING: &[&str] = &[
    "ASKING",
    "AUTH",
    "HELLO",
    "MONITOR",
    "PSUBSCRIBE",
    "PSYNC",
    "PUNSUBSCRIBE",
    "QUIT",
    "READONLY",
    "READWRITE",
    "REPLCONF",
    "RESET",
    "SELECT",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SUNSUBSCRIBE",
    "SYNC",
    "UNSUBSCRIBE",
];

/// Commands that mean something only to others on the same connection.
const TRANSACTION: &[&str] = &["DISCARD", "EXEC", "MULTI", "UNWATCH", "WATCH"];

/// The subcommands of CLIENT that leave the connection alone.
const HARMLESS_CLIENT: &[&str] =
    &["GETNAME", "GETREDIR", "HELP", "ID", "INFO", "KILL", "LIST", "PAUSE", "UNBLOCK", "UNPAUSE"];

/// Whether repeating `cmd` cannot do any harm.
pub(crate) fn is_read_only(cmd: &Cmd) -> bool {
    word(cmd, 0).is_some_and(|name| listed(READ_ONLY, name))
}

/// Whether `cmd` may change data, here and now. A WATCH or SELECT changes its connection alone, and what
/// follows a MULTI waits for its EXEC, but that is not looked into.
pub(crate) fn may_write(cmd: &Cmd) -> bool {
    const BARE: &[&str] = &["CLIENT", "DISCARD", "MULTI", "UNWATCH", "WATCH"];
    !is_read_only(cmd) && !alters(cmd) && !word(cmd, 0).is_some_and(|name| listed(BARE, name))
}

/// Whether `cmd` may rightly take its time.
pub(crate) fn is_blocking(cmd: &Cmd) -> bool {
    word(cmd, 0).is_some_and(|name| {
        listed(BLOCKING, name)
            || (listed(&["XREAD", "XREADGROUP"], name)
                && cmd
                    .args_iter()
                    .any(|arg| matches!(arg, Arg::Simple(word) if listed(&["BLOCK"], word))))
    })
}

/// The name of `cmd`, if it means nothing unless the next command goes to the same connection.
pub(crate) fn needs_own_connection(cmd: &Cmd) -> Option<String> {
    let name = word(cmd, 0)?;
    let needs = alters(cmd) || listed(TRANSACTION, name);
    needs.then(|| String::from_utf8_lossy(name).to_ascii_uppercase())
}

/// What a connection's commands have made of it.
#[derive(Debug, Default)]
pub(crate) struct Session {
    altered: bool,
    watching: bool,
    queueing: bool,
}

impl Session {
    /// Whether the next borrower would not notice.
    pub(crate) fn is_clean(&self) -> bool {
        !(self.altered || self.watching || self.queueing)
    }

    /// Takes note of a command before it is sent: from here on it may have been executed.
    pub(crate) fn sent(&mut self, cmd: &Cmd) {
        self.altered |= alters(cmd);
        match word(cmd, 0) {
            Some(name) if listed(&["WATCH"], name) => self.watching = true,
            Some(name) if listed(&["MULTI"], name) => self.queueing = true,
            _ => {}
        }
    }

    /// Takes note of a command's reply.
    pub(crate) fn answered(&mut self, cmd: &Cmd, reply: &Value) {
        let Some(name) = word(cmd, 0) else { return };
        let aborted = matches!(reply, Value::ServerError(error) if error.code() == "EXECABORT");
        let refused = matches!(reply, Value::ServerError(_));
        if listed(&["EXEC", "DISCARD"], name) && (aborted || !refused) {
            self.transaction_ended();
        } else if listed(&["UNWATCH"], name) && *reply == Value::Okay {
            self.watching = false;
        }
    }

    /// Takes note that the server has left MULTI, which also ends every WATCH.
    pub(crate) fn transaction_ended(&mut self) {
        (self.watching, self.queueing) = (false, false);
    }
}

fn alters(cmd: &Cmd) -> bool {
    let Some(name) = word(cmd, 0) else { return false };
    let client = || {
        listed(&["CLIENT"], name) && !word(cmd, 1).is_some_and(|sub| listed(HARMLESS_CLIENT, sub))
    };
    listed(ALTERING, name) || client()
}

fn word(cmd: &Cmd, index: usize) -> Option<&[u8]> {
    match cmd.args_iter().nth(index) {
        Some(Arg::Simple(word)) => Some(word),
        _ => None,
    }
}

fn listed(table: &[&str], name: &[u8]) -> bool {
    table.iter().any(|listed| listed.as_bytes().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::{cmd, parse_redis_value};

    use super::*;

    fn reply(text: &str) -> Value {
        parse_redis_value(text.as_bytes()).unwrap()
    }

    fn after(commands: &[(&str, &str)]) -> Session {
        let mut session = Session::default();
        for (line, answer) in commands {
            let mut words = line.split(' ');
            let mut command = cmd(words.next().unwrap());
            words.for_each(|word| {
                command.arg(word);
            });
            session.sent(&command);
            session.answered(&command, &reply(answer));
        }
        session
    }

    #[test]
    fn only_what_is_known_to_change_nothing_may_be_repeated() {
        for name in ["GET", "get", "HGETALL", "XREAD", "PING"] {
            assert!(is_read_only(&cmd(name)), "{name}");
        }
        for name in [
            "SET",
            "GETDEL",
            "GETEX",
            "EVAL",
            "EVALSHA",
            "SORT",
            "BLPOP",
            "XREADGROUP",
            "TOUCH",
            "",
        ] {
            assert!(!is_read_only(&cmd(name)), "{name}");
            assert!(may_write(&cmd(name)), "{name}");
        }
        for name in ["GET", "WATCH", "MULTI", "SELECT", "CLIENT"] {
            assert!(!may_write(&cmd(name)), "{name}");
        }
    }

    #[test]
    fn a_stream_read_blocks_only_if_told_to() {
        assert!(is_blocking(cmd("BLPOP").arg("list").arg(0)));
        assert!(is_blocking(cmd("XREAD").arg("block").arg(0).arg("STREAMS").arg("s").arg("$")));
        assert!(!is_blocking(cmd("XREAD").arg("STREAMS").arg("s").arg("0")));
        assert!(!is_blocking(cmd("GET").arg("block")));
    }

    #[test]
    fn what_alters_a_connection_is_never_undone() {
        for line in [
            "SELECT 1",
            "AUTH x",
            "HELLO 3",
            "SUBSCRIBE c",
            "PSUBSCRIBE c*",
            "MONITOR",
            "READONLY",
            "RESET",
            "CLIENT SETNAME x",
            "CLIENT REPLY OFF",
            "CLIENT NO-EVICT on",
            "client tracking on",
            "CLIENT",
        ] {
            assert!(!after(&[(line, "+OK\r\n")]).is_clean(), "{line}");
            // The server may have done it, whatever it says.
            assert!(!after(&[(line, "-ERR no\r\n")]).is_clean(), "{line}");
        }
        for line in ["GET x", "CLIENT ID", "client list", "CLIENT UNBLOCK 3"] {
            assert!(after(&[(line, "+OK\r\n")]).is_clean(), "{line}");
        }
    }

    #[test]
    fn a_transaction_leaves_no_mark_once_it_has_ended() {
        assert!(!after(&[("WATCH k", "+OK\r\n")]).is_clean());
        assert!(!after(&[("MULTI", "+OK\r\n"), ("SET k v", "+QUEUED\r\n")]).is_clean());
        for (end, answer) in [
            ("EXEC", "*1\r\n+OK\r\n"),
            ("EXEC", "*-1\r\n"),
            ("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n"),
            ("DISCARD", "+OK\r\n"),
        ] {
            let ended = [("WATCH k", "+OK\r\n"), ("MULTI", "+OK\r\n"), (end, answer)];
            assert!(after(&ended).is_clean(), "{end} {answer}");
        }
        assert!(after(&[("WATCH k", "+OK\r\n"), ("UNWATCH", "+OK\r\n")]).is_clean());
        let queued = [("WATCH k", "+OK\r\n"), ("MULTI", "+OK\r\n"), ("UNWATCH", "+QUEUED\r\n")];
        assert!(!after(&queued).is_clean());
        let unsure = [("MULTI", "+OK\r\n"), ("EXEC", "-ERR who knows\r\n")];
        assert!(!after(&unsure).is_clean());
    }

    #[test]
    fn a_watch_without_its_own_connection_is_found_out() {
        assert_eq!(needs_own_connection(cmd("watch").arg("k")).as_deref(), Some("WATCH"));
        assert_eq!(needs_own_connection(cmd("CLIENT").arg("SETNAME")).as_deref(), Some("CLIENT"));
        assert_eq!(needs_own_connection(cmd("GET").arg("WATCH")), None);
    }
}
