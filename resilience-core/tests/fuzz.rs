//! Fear: an input that once broke something, or nearly, breaks it again. `cargo xtask fuzz` looks for new ones.

use std::path::Path;

#[path = "support/breaker.rs"]
mod breaker;
#[cfg(feature = "settings")]
#[path = "support/duration.rs"]
mod duration;

/// Runs `target` on each committed input of that name.
fn replay(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let inputs: Vec<_> =
        std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(inputs.len() >= 20, "{} inputs", inputs.len());
    for input in inputs {
        println!("{}", input.display());
        target(&std::fs::read(input).unwrap());
    }
}

#[test]
fn no_known_history_sets_the_breaker_apart_from_its_model() {
    replay("breaker", breaker::run);
}

#[cfg(feature = "settings")]
#[test]
fn no_known_text_is_misread_as_a_duration() {
    replay("duration", duration::run);
}
