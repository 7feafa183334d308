//! What a feature of the facade compiles, asked of `cargo tree`: a backend that is not wanted costs nothing.

use std::collections::BTreeSet;

use xtask::cargo::Cargo;

/// The crates behind each backend's feature.
const BACKENDS: [(&str, &[&str]); 3] = [
    ("opensearch", &["conn-opensearch", "opensearch", "reqwest", "hyper"]),
    ("postgres", &["conn-postgres", "sqlx", "sqlx-core", "sqlx-postgres"]),
    ("redis", &["conn-redis", "deadpool-redis", "redis"]),
];

/// The names of all crates that the facade compiles with these features, build dependencies too.
fn compiled(features: &str) -> BTreeSet<String> {
    let tree = Cargo::new(
        "tree --locked -p shared-external --no-default-features --edges no-dev --prefix none",
    );
    let tree = tree.args(["--features", features]).output().unwrap();
    tree.lines().filter_map(|line| line.split(' ').next()).map(ToOwned::to_owned).collect()
}

#[test]
fn a_backend_alone_compiles_no_other() {
    for (feature, own) in BACKENDS {
        let compiled = compiled(feature);
        for name in own {
            assert!(compiled.contains(*name), "{feature} alone does not compile {name}");
        }
        for (other, foreign) in BACKENDS.iter().filter(|(other, _)| *other != feature) {
            let found: Vec<_> = foreign.iter().filter(|name| compiled.contains(**name)).collect();
            assert!(found.is_empty(), "{feature} alone compiles {found:?} of {other}");
        }
    }
}

#[test]
fn no_backend_is_compiled_unless_it_is_asked_for() {
    for features in ["", "macros", "discovery,kubernetes", "monitoring"] {
        let compiled = compiled(features);
        assert!(compiled.contains("resilience-core"), "{compiled:?}");
        let drivers = BACKENDS.iter().flat_map(|(_, crates)| crates.iter());
        let found: Vec<_> = drivers.filter(|name| compiled.contains(**name)).collect();
        assert!(found.is_empty(), "`{features}` compiles {found:?}");
    }
}

#[test]
fn all_backends_together_have_one_tls_provider() {
    let compiled = compiled("full");
    assert!(compiled.contains("aws-lc-rs"), "{compiled:?}");
    for other in ["ring", "openssl", "openssl-sys", "native-tls"] {
        assert!(
            !compiled.contains(other),
            "full compiles {other}: find who by `cargo tree -i {other}`"
        );
    }
}
