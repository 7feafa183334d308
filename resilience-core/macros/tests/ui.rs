//! What does not compile, and the cure its error names.

#[test]
fn what_cannot_work_is_an_error_that_names_the_cure() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
