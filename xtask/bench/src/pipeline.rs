//! What a whole pipeline costs a call.

use crate::case::{Case, Claim};
use crate::subjects::{backon, ours, seatbelt, tower};

/// Every case.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "pipeline: deadline, retry, budget, breaker, bulkhead, attempt timeout; a ready future",
            vec![
                ours::pipeline_ready(),
                seatbelt::four_layers_ready(),
                seatbelt::three_layers_ready(),
                tower::layers_ready(),
            ],
        )
        .claim(Claim::AtMost(250.0))
        .claim(Claim::Times(0.5, "seatbelt"))
        .claim(Claim::Compared("seatbelt, 3 layers"))
        .claim(Claim::Compared("tower"))
        .allocates_nothing(),
        Case::new(
            "pipeline: the same; a future that is pending once, its timers registered",
            vec![
                ours::pipeline_pending_once(),
                seatbelt::four_layers_pending_once(),
                seatbelt::three_layers_pending_once(),
                tower::layers_pending_once(),
            ],
        )
        .claim(Claim::Compared("seatbelt"))
        .claim(Claim::Compared("tower"))
        .allocates_nothing(),
        Case::new(
            "pipeline: retry alone; a ready future",
            vec![ours::retry_ready(), backon::retry_ready()],
        )
        .claim(Claim::Compared("backon")),
    ]
}
