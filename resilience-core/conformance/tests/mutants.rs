//! The suite itself: a connector that is whole passes, and one with a flaw is caught by the behaviour that names it.

mod fake;

use std::io::Write;

use fake::{Fake, Flaw};
use resilience_conformance::{Capability, Outcome, names, run, run_only};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connector_that_is_whole_passes() {
    let report = run(Fake::new(None).await).await;
    writeln!(std::io::stderr(), "{report}").unwrap();
    report.assert_conforms();
    let lacking = report.not_given();
    assert!(lacking.contains_key(&Capability::Transactions), "{report}");
    assert!(!lacking.contains_key(&Capability::Pool), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flaw_is_caught_by_the_behaviour_that_names_it() {
    let caught = [
        (Flaw::ConnectsAtOnce, "a_manager_that_nobody_uses_connects_to_nothing"),
        (Flaw::ForgetsToCheckSettings, "settings_that_cannot_work_are_all_told_at_once"),
        (Flaw::ShowsPasswordInDebug, "a_manager_that_is_printed_shows_no_password"),
        (Flaw::ShowsPasswordInDebug, "settings_that_are_printed_show_no_password"),
        (Flaw::ShowsPasswordInErrors, "a_refused_login_shows_no_password"),
        (Flaw::ShowsPasswordInErrors, "the_reason_of_bad_health_shows_no_password"),
        (Flaw::NamesNoEndpoint, "warming_up_at_a_server_that_is_down_is_an_error_that_names_it"),
        (
            Flaw::NamesNoEndpoint,
            "a_server_that_is_down_is_unhealthy_with_the_reason_and_the_endpoint",
        ),
        (Flaw::RetriesLogins, "a_wrong_password_is_told_once_and_not_tried_again"),
        (Flaw::RetriesLogins, "a_wrong_password_opens_no_circuit"),
        (Flaw::BlamesTheServerForRefusals, "a_callers_fault_opens_no_circuit"),
        (Flaw::BlamesTheServerForExhaustion, "our_own_exhaustion_opens_no_circuit"),
        (Flaw::BlamesTheServerForExhaustion, "who_finds_no_place_is_told_so_and_the_limit"),
        (Flaw::RepeatsEveryWrite, "a_write_whose_answer_was_lost_is_not_repeated"),
        (Flaw::RepeatsEveryWrite, "a_write_into_a_silent_server_is_not_repeated"),
        (Flaw::RepeatsNothing, "a_read_whose_answer_was_lost_is_repeated"),
        (Flaw::HasNoAttemptTimeout, "an_attempt_ends_at_its_timeout_and_not_later"),
        (Flaw::LendsWhatIsUnfinished, "nobody_gets_the_answer_to_a_call_that_was_dropped"),
        (Flaw::LosesPlaces, "a_call_that_is_dropped_at_any_point_gives_its_place_back_at_once"),
        (Flaw::CountsNoPlaces, "there_are_never_more_connections_than_places"),
        (Flaw::IsDeafToTheAcquireTimeout, "who_waits_for_a_place_waits_no_longer_than_was_set"),
        (Flaw::ServesTheLastFirst, "who_waits_first_is_served_first"),
        (Flaw::KeepsNothingIdle, "idle_connections_are_used_again"),
        (Flaw::KeepsNothingIdle, "a_warm_connection_is_the_one_that_the_first_call_uses"),
        (Flaw::KeepsWhatDied, "one_loss_clears_out_the_idle_connections_that_died_with_it"),
        (Flaw::StaysAtTheFirstEndpoint, "the_next_call_follows_an_endpoint_that_moved"),
        (Flaw::StaysAtTheFirstEndpoint, "no_endpoint_at_all_is_told_at_once_and_passes"),
        (Flaw::DrainsWithoutWaiting, "a_drain_waits_for_what_runs"),
        (Flaw::DrainsForEver, "a_drain_ends_by_its_deadline_and_says_what_it_abandons"),
        (Flaw::DrainsForEver, "a_silent_server_holds_no_drain"),
        (Flaw::KeepsConnectionsAfterDrain, "a_drain_closes_every_connection"),
        (Flaw::AsksHealthThroughTheCircuit, "health_looks_past_an_open_circuit"),
        (Flaw::AsksHealthThroughTheCircuit, "a_health_check_moves_no_circuit"),
        (Flaw::WaitsForHealthForEver, "a_silent_server_holds_no_health_check"),
        (Flaw::TellsOfNoReturn, "connections_lent_and_given_back_are_told_and_match"),
    ];
    let mut missed = Vec::new();
    for (flaw, behaviour) in caught {
        let mut is_caught = false;
        // A machine that stood still excuses what it should not, so a flaw is given more than one look.
        for _ in 0..3 {
            let report = run_only(Fake::new(Some(flaw)).await, &[behaviour]).await;
            is_caught |= report.failed().count() == 1;
            if is_caught {
                break;
            }
        }
        if !is_caught {
            missed.push(format!("{flaw:?} by {behaviour}"));
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "a pool: said to be lacking, but all that needs it holds")]
async fn what_is_said_to_be_lacking_and_is_there_is_noticed() {
    let mut fake = Fake::new(None).await;
    fake.denies = &[Capability::Pool];
    let behaviours = ["idle_connections_are_used_again", "a_drain_refuses_what_is_new"];
    let report = run_only(fake, &behaviours).await;
    assert_eq!(report.stale(), [Capability::Pool]);
    assert_eq!(report.passed(), 1);
    report.assert_conforms();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_and_what_panics_fails_and_ends_no_run() {
    let behaviours = ["a_silent_server_holds_no_health_check", "a_drain_refuses_what_is_new"];
    let report = run_only(Fake::new(Some(Flaw::WaitsForHealthForEver)).await, &behaviours).await;
    let outcomes: Vec<_> = report.entries().iter().map(|entry| &entry.outcome).collect();
    assert!(matches!(outcomes[..], [Outcome::Failed(_), Outcome::Passed]), "{report}");
    assert!(report.to_string().contains("1 passed, 1 failed, 0 not given"), "{report}");
}

#[test]
fn no_two_behaviours_have_one_name_and_there_are_enough_of_them() {
    let names = names();
    let distinct: std::collections::BTreeSet<_> = names.iter().map(|(_, name)| name).collect();
    assert_eq!(distinct.len(), names.len());
    assert!(names.len() >= 50, "{}", names.len());
}
