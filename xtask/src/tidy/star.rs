//! Rules for the workspace: who may depend on whom, and that every crate takes part in the common lints.

use std::collections::BTreeSet;

use super::Finding;
use crate::cargo::Package;

const FACADE: &str = "shared-external";
const CORE: &str = "resilience-core";
const MACROS: &str = "resilience-macros";
const CONFORMANCE: &str = "resilience-conformance";
const MIDDLE: [&str; 5] =
    ["conn-opensearch", "conn-postgres", "conn-redis", "discovery", "monitoring"];

/// The crates that speak to a backend, and who may know them: a backend touches one folder.
const DRIVERS: [(&str, &str); 6] = [
    ("deadpool-redis", "conn-redis"),
    ("opensearch", "conn-opensearch"),
    ("redis", "conn-redis"),
    ("reqwest", "conn-opensearch"),
    ("sqlx", "conn-postgres"),
    ("sqlx-core", "conn-postgres"),
];

/// What the star allows a member to depend on, among the members.
fn allowed(name: &str) -> Option<Vec<&'static str>> {
    match name {
        FACADE => Some([&MIDDLE[..], &[CORE]].concat()),
        CORE => Some(vec![MACROS]),
        // Its tests use what it expands to.
        MACROS => Some(vec![CORE]),
        CONFORMANCE => Some(vec![CORE]),
        connector if connector.starts_with("conn-") && MIDDLE.contains(&connector) => {
            Some(vec![CORE, CONFORMANCE])
        }
        middle if MIDDLE.contains(&middle) => Some(vec![CORE]),
        _ => None,
    }
}

/// Every middle crate knows the core and nothing sideways; the examples, xtask and what is
/// under it are nobody's dependency.
pub(super) fn star(manifest: &Manifest<'_>, members: &BTreeSet<&str>) -> Vec<Finding> {
    let package = manifest.package;
    let Some(allowed) = allowed(&package.name) else {
        let leaf = ["shared-external/examples/", "xtask/"];
        if package.name == "xtask" || leaf.iter().any(|dir| manifest.path.starts_with(dir)) {
            return Vec::new();
        }
        return vec![
            manifest.finding("star", "a new crate: say in the rule what it may depend on"),
        ];
    };
    let mut found = Vec::new();
    for dependency in &package.dependencies {
        let name = dependency.name.as_str();
        let sideways = members.contains(name) && !allowed.contains(&name);
        let dev = dependency.kind.as_deref() == Some("dev");
        // Only tests of the macros may go up, and the suite is for tests alone.
        let upward = !dev && (package.name == MACROS && name == CORE || name == CONFORMANCE);
        let foreign = |(driver, owner): &(&str, &str)| *driver == name && *owner != package.name;
        let driver = !dev && DRIVERS.iter().any(foreign);
        if sideways || upward || driver {
            let cure = format!("{} must not depend on {name}: meet in {CORE}", package.name);
            found.push(manifest.finding("star", cure));
        }
    }
    found
}

/// Features add to a facade that begins with no backend.
pub(super) fn facade_default(manifest: &Manifest<'_>) -> Vec<Finding> {
    let package = manifest.package;
    let default = package.features.get("default");
    if package.name != FACADE || default.is_none_or(Vec::is_empty) {
        return Vec::new();
    }
    vec![
        manifest.finding("facade-default", "leave the default features empty: applications choose"),
    ]
}

/// A crate that does not take the common lints has none.
pub(super) fn lints_inherited(manifest: &Manifest<'_>) -> Vec<Finding> {
    if section(manifest.text, "[lints]").any(|line| line == "workspace = true") {
        return Vec::new();
    }
    vec![manifest.finding("lints-inherited", "add `[lints]` with `workspace = true`")]
}

/// The common lints forbid `unsafe`; together with [`lints_inherited`], in every crate.
pub(super) fn unsafe_forbidden(workspace: &str) -> Vec<Finding> {
    if section(workspace, "[workspace.lints.rust]").any(|line| line == "unsafe_code = \"forbid\"") {
        return Vec::new();
    }
    let cure = "add `unsafe_code = \"forbid\"` to `[workspace.lints.rust]`".to_owned();
    vec![Finding { rule: "unsafe-forbidden", path: "Cargo.toml".to_owned(), line: 1, cure }]
}

/// A member's `Cargo.toml`.
pub(super) struct Manifest<'a> {
    /// Its path from the top.
    pub(super) path: &'a str,
    /// What is in it.
    pub(super) text: &'a str,
    /// What cargo makes of it.
    pub(super) package: &'a Package,
}

impl Manifest<'_> {
    fn finding(&self, rule: &'static str, cure: impl Into<String>) -> Finding {
        Finding { rule, path: self.path.to_owned(), line: 1, cure: cure.into() }
    }
}

/// The lines below a header, up to the next.
fn section<'a>(text: &'a str, header: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = text.lines().map(str::trim);
    lines.skip_while(move |line| *line != header).skip(1).take_while(|line| !line.starts_with('['))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo::Dependency;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(ToOwned::to_owned),
            path: None,
        };
        Package {
            name: name.to_owned(),
            manifest_path: "Cargo.toml".into(),
            features: [].into(),
            dependencies: dependencies.iter().map(dependency).collect(),
            targets: Vec::new(),
        }
    }

    fn breaches(path: &str, package: &Package) -> usize {
        let members = [FACADE, CORE, MACROS, CONFORMANCE, "xtask", "sim", "campaigns"]
            .into_iter()
            .chain(MIDDLE)
            .collect();
        star(&Manifest { path, text: "", package }, &members).len()
    }

    #[test]
    fn the_star_holds() {
        let fine = [
            package(FACADE, &[(CORE, None), ("conn-redis", None), ("monitoring", None)]),
            package(FACADE, &[("sqlx", Some("dev"))]),
            package("conn-redis", &[(CORE, None), ("deadpool-redis", None), ("tokio", None)]),
            package(CORE, &[(MACROS, None), ("tokio", None)]),
            package(MACROS, &[("syn", None), (CORE, Some("dev"))]),
            package(CONFORMANCE, &[(CORE, None), ("tokio", None)]),
            package("conn-redis", &[(CORE, None), (CONFORMANCE, Some("dev"))]),
            package("xtask", &[(FACADE, None), ("conn-redis", Some("dev")), ("redis", None)]),
        ];
        for package in fine {
            assert_eq!(breaches("a/Cargo.toml", &package), 0, "{}", package.name);
        }
        let example = package("campaigns", &[(FACADE, None), ("sqlx", None)]);
        assert_eq!(breaches("shared-external/examples/campaigns/Cargo.toml", &example), 0);
        let sim = package("sim", &[(CORE, None), ("tokio", None)]);
        assert_eq!(breaches("xtask/sim/Cargo.toml", &sim), 0);
    }

    #[test]
    fn a_step_sideways_up_or_to_a_foreign_driver_breaks_it() {
        let bad = [
            package("conn-redis", &[("conn-postgres", None)]),
            package("conn-redis", &[("monitoring", Some("dev"))]),
            package("monitoring", &[("discovery", None)]),
            package("monitoring", &[("sqlx", None)]),
            package("discovery", &[(FACADE, None)]),
            package(CORE, &[("reqwest", None)]),
            package(CORE, &[("discovery", Some("dev"))]),
            package(MACROS, &[(CORE, None)]),
            package("conn-redis", &[(CONFORMANCE, None)]),
            package("monitoring", &[(CONFORMANCE, Some("dev"))]),
            package(CONFORMANCE, &[("conn-redis", Some("dev"))]),
            package(FACADE, &[("xtask", Some("dev"))]),
            package(CORE, &[("sim", Some("dev"))]),
            package("conn-kafka", &[(CORE, None)]),
        ];
        for package in bad {
            assert_eq!(breaches("a/Cargo.toml", &package), 1, "{package:?}");
        }
    }

    #[test]
    fn a_crate_without_the_common_lints_is_found() {
        let package = package(CORE, &[]);
        let found = |text| {
            lints_inherited(&Manifest { path: "a/Cargo.toml", text, package: &package }).len()
        };
        assert_eq!(found("[package]\n\n[lints]\nworkspace = true\n\n[features]\n"), 0);
        assert_eq!(
            found("[package]\nversion.workspace = true\n[lints]\n[features]\nworkspace = true\n"),
            1
        );
        assert_eq!(found("[package]\nworkspace = true\n"), 1);
    }

    #[test]
    fn unsafe_code_is_forbidden_and_not_merely_denied() {
        assert_eq!(unsafe_forbidden("[workspace.lints.rust]\nunsafe_code = \"forbid\"\n").len(), 0);
        assert_eq!(unsafe_forbidden("[workspace.lints.rust]\nunsafe_code = \"deny\"\n").len(), 1);
        assert_eq!(unsafe_forbidden("[lints.rust]\nunsafe_code = \"forbid\"\n").len(), 1);
    }

    #[test]
    fn a_default_backend_is_found() {
        let mut facade = package(FACADE, &[]);
        let found =
            |package: &Package| facade_default(&Manifest { path: "a", text: "", package }).len();
        assert_eq!(found(&facade), 0);
        facade.features.insert("default".to_owned(), Vec::new());
        assert_eq!(found(&facade), 0);
        facade.features.insert("default".to_owned(), vec!["redis".to_owned()]);
        assert_eq!(found(&facade), 1);
    }
}
