//! Every row of the classifier's table, provoked: on the real server where it can be, else on a scripted one.

mod means;
mod support;

use std::time::Duration;

use conn_postgres::Conn;
use resilience_core::{Replay, Verdict};
use sqlx::{AssertSqlSafe, Executor};
use support::ground::{Fate, Ground, Told};
use tokio::time::Instant;

use Fate::{Closed, Kept, Unopened};
use Replay::{IfIdempotent, Never, Safe, Transaction};

/// What goes wrong, and what must come of it.
struct Row {
    /// SQLSTATE or event, as the classifier's table has it.
    what: &'static str,
    verdict: Verdict,
    /// How often the server began it, in a call of two attempts.
    runs: i64,
    fate: Fate,
}

/// A test for each row, and the list of them. The means at its end provokes it.
macro_rules! rows {
    ($($what:literal $test:ident: $blame:ident($replay:ident), $runs:literal, $fate:ident, $means:ident;)+) => {
        const ROWS: &[Row] = &[$(
            Row { what: $what, verdict: Verdict::$blame($replay), runs: $runs, fate: $fate }
        ),+];

        $(
            #[tokio::test]
            async fn $test() {
                let row = Row { what: $what, verdict: Verdict::$blame($replay), runs: $runs, fate: $fate };
                judge(&row, means::$means($what).await);
            }
        )+
    };
}

rows! {
    "DNS" a_name_nobody_knows: service(Safe), 0, Unopened, unknown_name;
    "refused" a_port_nobody_listens_on: service(Safe), 0, Unopened, closed_port;
    "connect timeout" a_peer_that_says_nothing: service(Safe), 2, Unopened, silent_peer;
    "TLS" a_certificate_nobody_vouches_for: service(Safe), 2, Unopened, foreign_certificate;
    "08001" a_connection_not_made: service(Safe), 2, Unopened, refusal_by_script;
    "08004" a_connection_not_taken: service(Safe), 2, Unopened, refusal_by_script;
    "53300" a_role_without_a_free_connection: service(Safe), 2, Unopened, limited_role;
    "57P03" a_server_that_shuts_down: service(Safe), 2, Unopened, smart_shutdown;
    "57P05" a_session_ended_for_idleness: service(Safe), 1, Closed, idle_session_timeout;

    "pool exhausted" a_pool_whose_connections_are_all_lent: local(Safe), 0, Kept, held_connection;
    "no credentials to be had" a_vault_that_is_shut: local(Safe), 0, Unopened, shut_vault;
    "no answer in what a long wait for a connection left of the attempt" a_borrower_who_waited_for_long:
        local(IfIdempotent), 1, Closed, long_wait;

    "connection lost" a_wire_cut_under_a_statement: service(IfIdempotent), 1, Closed, cut_wire;
    "server silent" a_server_that_falls_silent: service(IfIdempotent), 1, Closed, silenced_wire;
    "08006" a_connection_failure: service(IfIdempotent), 1, Closed, fatal_by_script;
    "57P01" a_backend_ended_under_a_statement: service(IfIdempotent), 1, Closed, terminated_backend;
    "or COMMIT" a_backend_ended_under_commit: service(IfIdempotent), 1, Closed, terminated_at_commit;
    "57P02" a_server_that_crashes: service(IfIdempotent), 1, Closed, crash;
    "57P02" a_crash_that_is_told: service(IfIdempotent), 1, Closed, fatal_by_script;
    "08007" a_transaction_nobody_knows_about: service(IfIdempotent), 1, Kept, error_by_script;
    "40003" a_statement_nobody_knows_about: service(IfIdempotent), 1, Kept, error_by_script;
    "the same within a transaction before COMMIT" a_backend_ended_before_commit:
        service(Transaction), 2, Closed, terminated_before_commit;
    "the same within a transaction before COMMIT" a_wire_cut_before_commit:
        service(Transaction), 2, Closed, cut_wire_before_commit;

    "40000" a_transaction_rolled_back: caller(Transaction), 2, Kept, error_by_script;
    "40001" a_serialization_failure: caller(Transaction), 2, Kept, concurrent_update;
    "40P01" a_deadlock: caller(Transaction), 2, Kept, crossed_locks;
    "55P03" a_lock_that_is_taken: caller(Transaction), 2, Kept, locked_table;
    "25P03" a_transaction_left_idle: caller(Transaction), 2, Closed, idle_in_transaction;
    "72000" a_snapshot_too_old: caller(Transaction), 2, Kept, error_by_script;

    "25006" a_server_that_takes_no_writes: service(Safe), 2, Closed, read_only;

    "26000" a_statement_the_server_forgot: caller(Safe), 1, Closed, deallocated_statements;
    "42P05" a_statement_the_server_has_already: caller(Safe), 1, Closed, taken_statement_names;
    "0A000" a_table_that_was_changed: caller(Safe), 1, Closed, changed_table;

    "53000" resources_that_ran_out: service(Transaction), 1, Kept, error_by_script;
    "53100" a_full_disk: service(Transaction), 1, Kept, full_disk;
    "53200" a_full_lock_table: service(Transaction), 1, Kept, full_lock_table;
    "53400" a_limit_of_the_configuration: service(Transaction), 1, Kept, temp_file_limit;
    "58000" a_system_error: service(Transaction), 1, Kept, error_by_script;
    "58030" an_input_that_cannot_be_read: service(Transaction), 1, Kept, unreadable_input;

    "57014" a_statement_cancelled_by_an_operator: service(Never), 1, Kept, operator;
    "57014" a_statement_past_the_servers_timeout: service(Never), 1, Kept, statement_timeout;

    "what else is of class 57 or 58 or XX" an_internal_error: service(Never), 1, Kept, corrupt_request;

    "everything else that the server answers" a_division_by_zero: caller(Never), 1, Kept, class_22;
    "everything else that the server answers" a_doubled_key: caller(Never), 1, Kept, class_23;
    "everything else that the server answers" a_table_that_is_not_there: caller(Never), 1, Kept, class_42;
    "everything else that the server answers" a_database_that_is_not_there: caller(Never), 1, Unopened, class_3d;
    "everything else that the server answers" a_wrong_password: caller(Never), 1, Unopened, class_28;
    "everything else that the server answers" a_role_that_may_not_log_in: caller(Never), 1, Unopened, class_28000;
    "08P01" a_parameter_that_was_forgotten: caller(Never), 0, Kept, forgotten_parameter;
    "57P04" a_database_that_was_dropped: caller(Never), 1, Closed, fatal_by_script;
}

fn judge(row: &Row, told: Told) {
    let code = told.code.as_deref();
    if is_code(row.what) && row.what != "57P02" {
        assert_eq!(code, Some(row.what), "{told:?}");
    }
    let Verdict { blame, replay, .. } = told.verdict;
    assert_eq!((blame, replay), (row.verdict.blame, row.verdict.replay), "{}: {code:?}", row.what);
    assert_eq!((told.runs, told.fate), (row.runs, row.fate), "{}: {code:?}", row.what);
}

fn is_code(word: &str) -> bool {
    let letters = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
    word.len() == 5 && word.chars().all(letters) && word.contains(|c: char| c.is_ascii_digit())
}

/// The rows of the table in the classifier's documentation: event, replay, blame.
fn documented() -> Vec<[&'static str; 3]> {
    let source = include_str!("../src/classify.rs");
    let table = source.lines().skip_while(|line| !line.starts_with("/// |---"));
    let rows = table.skip(1).map_while(|line| line.strip_prefix("/// | ")?.strip_suffix(" |"));
    rows.map(|row| {
        let cells: Vec<_> = row.split(" | ").collect();
        cells.try_into().unwrap_or_else(|_| panic!("three cells are expected: {row}"))
    })
    .collect()
}

fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| is_code(word))
}

#[test]
fn the_documented_rows_and_those_provoked_here_are_the_same() {
    let documented = documented();
    assert!(documented.len() > 10, "the table was not found");
    // Its own file, since it takes the descriptors from all of the process.
    let elsewhere = ["out of file descriptors", include_str!("live_descriptors.rs")];
    for [events, replay, blame] in &documented {
        let here: Vec<_> = ROWS.iter().filter(|row| events.contains(row.what)).collect();
        assert!(!here.is_empty(), "nothing provokes {events}");
        for row in here {
            let Verdict { blame: who, replay: again, .. } = row.verdict;
            let again = match again {
                Safe => "safe",
                Transaction => "transaction",
                IfIdempotent => "if idempotent",
                Never => "never",
            };
            let told = (replay.split(';').next(), format!("{who:?}").to_lowercase());
            assert_eq!(told, (Some(again), (*blame).to_owned()), "{}", row.what);
        }
        for event in events.split([',', ';']).map(str::trim) {
            let mut codes = codes(event).peekable();
            let is_covered = |what: &str| ROWS.iter().any(|row| row.what == what);
            match codes.peek() {
                Some(_) => codes.for_each(|code| assert!(is_covered(code), "{code} is not here")),
                None => {
                    let known = ROWS.iter().any(|row| event.contains(row.what));
                    let aside = ["once", "after 5 s"].contains(&event)
                        || event == elsewhere[0] && elsewhere[1].contains("classify");
                    assert!(known || aside, "{event:?} is not here");
                }
            }
        }
    }
    for row in ROWS {
        let rows = documented.iter().filter(|[events, ..]| events.contains(row.what)).count();
        assert!(rows > 0, "{} is not documented", row.what);
    }
    for code in codes(include_str!("../src/classify.rs")) {
        assert!(ROWS.iter().any(|row| row.what == code), "{code} is in the code and not here");
    }
}

#[tokio::test]
async fn a_server_that_ran_out_is_left_alone_for_a_while() {
    let ground = Ground::with(|it| it.deadline(Duration::from_secs(20))).await;
    let started = Instant::now();
    let told = ground.write(means::SORT).await;
    assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!((told.runs, told.fate), (2, Kept));
}

#[tokio::test]
async fn what_took_effect_before_makes_each_of_them_uncertain() {
    let ground = Ground::new().await;
    for (what, code) in [
        ("SET LOCAL transaction_read_only = on; CREATE TABLE never ()", "25006"),
        ("SET LOCAL lock_timeout = '1ms'; LOCK TABLE held", "55P03"),
        ("COPY (SELECT repeat('x', 100000)) TO '/dev/full'", "53100"),
    ] {
        let what = what.replace("held", &format!("\"{}\"", ground.name));
        let mut holder = ground.side().await;
        let lock = format!("BEGIN; LOCK TABLE \"{}\"", ground.name);
        holder.execute(AssertSqlSafe(lock)).await.unwrap();
        let before = ground.runs().await;
        let call = ground
            .db
            .write(async |mut conn: Conn| {
                conn.execute("SELECT 1").await?;
                Ok(conn.execute(ground.counted(&what)).await?)
            })
            .await;
        let told = ground.tell(call).await;
        assert_eq!(told.code.as_deref(), Some(code));
        assert_eq!((told.verdict.replay, told.runs - before), (IfIdempotent, 1), "{code}");
    }
}
