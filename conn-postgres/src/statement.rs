//! Looks at a statement's first words: whether it begins or ends a transaction, or leaves traces in the session.
//!
//! The driver does not tell in which state a statement leaves the connection, so a borrower could hand
//! on an open transaction, a subscription or a changed setting. This is no parser: what it cannot see
//! (a function that changes a setting) it does not claim to see.

/// What a statement does beyond its result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Nothing that outlives it or its transaction.
    Plain,
    /// Sets or returns to a savepoint.
    Savepoint,
    /// Begins or ends a transaction; the keyword.
    Transaction(&'static str),
    /// Changes the session: a setting, a subscription, a temporary table.
    Session,
}

/// What is known of a statement, or of several sent as one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Statement {
    pub(crate) kind: Kind,
    /// It is executed, not only looked at.
    pub(crate) executes: bool,
    /// More than one, which the server runs as one transaction unless they say otherwise.
    pub(crate) several: bool,
    /// It may commit in the midst of its work, so that its failure does not prove that nothing was done.
    pub(crate) may_commit_inside: bool,
}

impl Statement {
    /// Looks at `sql`, which is sent without arguments if `simple`: then it may hold several statements.
    pub(crate) fn of(sql: &str, simple: bool) -> Self {
        match simple && sql.trim_end().trim_end_matches(';').contains(';') {
            true => Self::of_several(sql),
            false => Self::of_one(sql),
        }
    }

    /// A closure's worth of work on the driver's own connection: anything may have happened.
    pub(crate) const fn opaque() -> Self {
        Self { kind: Kind::Plain, executes: true, several: true, may_commit_inside: true }
    }

    /// What only looks at a statement, and executes nothing.
    pub(crate) const fn harmless() -> Self {
        Self { kind: Kind::Plain, executes: false, several: false, may_commit_inside: false }
    }

    fn of_one(sql: &str) -> Self {
        let (first, rest) = word(sql);
        let second = || word(rest).0;
        let is = |word: &str| first.eq_ignore_ascii_case(word);
        let then = |words: &[&str]| words.iter().any(|word| second().eq_ignore_ascii_case(word));
        let kind = match first.as_bytes().first().map(u8::to_ascii_uppercase) {
            Some(b'A') if is("ABORT") => Kind::Transaction("ABORT"),
            Some(b'B') if is("BEGIN") => Kind::Transaction("BEGIN"),
            Some(b'C') if is("COMMIT") => Kind::Transaction("COMMIT"),
            Some(b'C') if is("CREATE") && then(&["TEMP", "TEMPORARY", "LOCAL", "GLOBAL"]) => {
                Kind::Session
            }
            Some(b'D') if is("DISCARD") || is("DEALLOCATE") => Kind::Session,
            Some(b'E') if is("END") => Kind::Transaction("END"),
            Some(b'L') if is("LISTEN") || is("LOAD") => Kind::Session,
            Some(b'P') if is("PREPARE") && then(&["TRANSACTION"]) => {
                Kind::Transaction("PREPARE TRANSACTION")
            }
            Some(b'P') if is("PREPARE") => Kind::Session,
            Some(b'R') if is("ROLLBACK") && !back_to_savepoint(rest) => {
                Kind::Transaction("ROLLBACK")
            }
            Some(b'R') if is("ROLLBACK") || is("RELEASE") => Kind::Savepoint,
            Some(b'S') if is("SAVEPOINT") => Kind::Savepoint,
            Some(b'S') if is("START") => Kind::Transaction("START TRANSACTION"),
            Some(b'S') if is("SET") && !then(&["LOCAL", "TRANSACTION", "CONSTRAINTS"]) => {
                Kind::Session
            }
            _ => Kind::Plain,
        };
        Self { kind, executes: true, several: false, may_commit_inside: is("CALL") || is("DO") }
    }

    fn of_several(sql: &str) -> Self {
        let mut whole = Self { may_commit_inside: false, ..Self::opaque() };
        for one in split(sql).map(Self::of_one) {
            whole.may_commit_inside |=
                one.may_commit_inside || matches!(one.kind, Kind::Transaction(_));
            whole.kind = match (whole.kind, one.kind) {
                (Kind::Transaction(word), _) | (_, Kind::Transaction(word)) => {
                    Kind::Transaction(word)
                }
                (Kind::Session, _) | (_, Kind::Session) => Kind::Session,
                (Kind::Savepoint, _) | (_, Kind::Savepoint) => Kind::Savepoint,
                (Kind::Plain, Kind::Plain) => Kind::Plain,
            };
        }
        whole
    }
}

/// `ROLLBACK [WORK | TRANSACTION] TO …`.
fn back_to_savepoint(rest: &str) -> bool {
    let (next, rest) = word(rest);
    let next = match next.to_ascii_uppercase().as_str() {
        "WORK" | "TRANSACTION" => word(rest).0,
        _ => next,
    };
    next.eq_ignore_ascii_case("TO")
}

/// The first word of `sql` after blanks, comments and parentheses, and what follows it.
fn word(sql: &str) -> (&str, &str) {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|letter: char| letter.is_whitespace() || letter == '(');
        match comment(rest) {
            Some(length) => rest = &rest[length..],
            None => break,
        }
    }
    rest.split_at(rest.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(rest.len()))
}

/// The length of the comment that `sql` begins with, if it begins with one.
fn comment(sql: &str) -> Option<usize> {
    if sql.starts_with("--") {
        return Some(sql.find('\n').unwrap_or(sql.len()));
    }
    if !sql.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while at < sql.len() {
        let (step, change) = match &sql.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        (depth, at) = (depth + change, at + step);
        if depth == 0 {
            break;
        }
    }
    Some(at)
}

/// The length of the quoted text that `sql` begins with, if it begins with one.
fn quoted(sql: &str) -> Option<usize> {
    let quote = match sql.as_bytes().first()? {
        b'$' => {
            let tag = sql[1..].find('$').map(|end| &sql[..end + 2])?;
            let named = |letter: char| letter.is_alphanumeric() || letter == '_';
            if !tag[1..tag.len() - 1].chars().all(named) {
                return None;
            }
            tag
        }
        b'\'' => "'",
        b'"' => "\"",
        b'E' | b'e' if sql[1..].starts_with('\'') => return Some(escaped(sql)),
        _ => return None,
    };
    let end = sql[quote.len()..].find(quote).map(|at| at + 2 * quote.len());
    Some(end.unwrap_or(sql.len()))
}

/// The length of the text in `E'…'`, where a backslash hides a quote.
fn escaped(sql: &str) -> usize {
    let mut hidden = false;
    let end = sql.char_indices().skip(2).find(|(_, letter)| {
        let ends = *letter == '\'' && !hidden;
        hidden = *letter == '\\' && !hidden;
        ends
    });
    end.map_or(sql.len(), |(at, _)| at + 1)
}

/// The statements of `sql`: cut at each semicolon that stands outside quotes and comments.
fn split(sql: &str) -> impl Iterator<Item = &str> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut at = 0;
        while at < rest.len() {
            let tail = &rest[at..];
            match quoted(tail).or_else(|| comment(tail)) {
                Some(length) => at += length,
                None if tail.starts_with(';') => break,
                None => at += tail.chars().next().map_or(1, char::len_utf8),
            }
        }
        let statement = &rest[..at];
        rest = rest.get(at + 1..).unwrap_or_default();
        Some(statement)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(sql: &str) -> Kind {
        Statement::of(sql, true).kind
    }

    #[test]
    fn a_transaction_begun_behind_our_back_is_seen() {
        for sql in [
            "BEGIN",
            " begin;",
            "-- now\n/* a /* nested */ note */ START TRANSACTION READ ONLY",
            "COMMIT",
            "end",
            "ABORT",
            "rollback",
            "ROLLBACK WORK",
            "PREPARE TRANSACTION 'x'",
            "SELECT 1; BEGIN; SELECT 2",
            r"SELECT E'\''; BEGIN; SELECT ''",
        ] {
            assert!(matches!(kind(sql), Kind::Transaction(_)), "{sql}");
        }
    }

    #[test]
    fn what_stays_in_the_session_is_seen() {
        for sql in [
            "SET search_path = x",
            "set session timezone to 'UTC'",
            "LISTEN jobs",
            "CREATE TEMP TABLE t ()",
            "PREPARE p AS SELECT 1",
            "DISCARD ALL",
            "SELECT 1; LISTEN jobs",
        ] {
            assert_eq!(kind(sql), Kind::Session, "{sql}");
        }
        for sql in
            ["ROLLBACK TO a", "rollback transaction to savepoint a", "RELEASE a", "SAVEPOINT a"]
        {
            assert_eq!(kind(sql), Kind::Savepoint, "{sql}");
        }
    }

    #[test]
    fn an_ordinary_statement_is_left_alone() {
        for sql in [
            "SELECT 1",
            "(SELECT 1) UNION (SELECT 2);",
            "SET LOCAL statement_timeout = 5",
            "set transaction isolation level serializable",
            "INSERT INTO t VALUES ('; BEGIN; ') ON CONFLICT DO NOTHING; SELECT ';COMMIT'",
            "CREATE FUNCTION f() RETURNS int AS $x$ BEGIN RETURN 1; END; $x$ LANGUAGE plpgsql; SELECT f()",
            "SELECT \"a;begin\"; /* ;BEGIN */ SELECT 2 -- ;COMMIT\n; SELECT 3",
            "SELECT $1",
            "ending",
            "",
            ";;",
            "SELECT '€'; SELECT $€$; SELECT 'open",
        ] {
            assert_eq!(kind(sql), Kind::Plain, "{sql}");
        }
    }

    #[test]
    fn a_procedure_may_commit_before_it_fails() {
        assert!(Statement::of("/* x */ call p()", false).may_commit_inside);
        assert!(Statement::of("SELECT 1; DO $$ BEGIN COMMIT; END $$", true).may_commit_inside);
        assert!(
            !Statement::of("INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING", false)
                .may_commit_inside
        );
        assert!(
            Statement::of("INSERT INTO t VALUES (1); COMMIT; SELECT 1/0", true).may_commit_inside
        );
    }
}
