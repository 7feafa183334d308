//! Services named by the environment: `DISCOVERY_<NAME>`.

use std::ffi::OsString;
use std::path::PathBuf;

use resilience_core::settings::{Held, Problem};

use crate::declare::{self, Declaration};

const PREFIX: &str = "DISCOVERY_";
const FILE: &str = "DISCOVERY_FILE";

/// What the environment tells.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) declarations: Vec<Declaration>,
    pub(crate) file: Option<PathBuf>,
    pub(crate) problems: Vec<Problem>,
}

/// Reads `variables`; those that are empty count as not set.
pub(crate) fn read(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    max_endpoints: usize,
) -> Told {
    let mut told = Told::default();
    for (variable, value) in variables {
        let Some(variable) = variable.to_str() else { continue };
        let Some(name) = variable.strip_prefix(PREFIX) else { continue };
        if value.is_empty() {
            continue;
        }
        if variable == FILE {
            told.file = Some(value.into());
            continue;
        }
        let Some(value) = value.to_str() else {
            let allowed = "text in UTF-8".to_owned();
            told.problems.push(Problem { name: variable.to_owned(), held: Held::Secret, allowed });
            continue;
        };
        let name = declare::service_name(variable, name);
        let source = declare::source(variable, value, max_endpoints);
        match (name, source) {
            (Ok(name), Ok(source)) => told.declarations.push(Declaration { name, source }),
            (name, source) => {
                told.problems.extend(name.err());
                told.problems.extend(source.err().into_iter().flatten());
            }
        }
    }
    // The environment has no order of its own.
    told.declarations.sort_by(|a, b| a.name.cmp(&b.name));
    told.problems.sort_by(|a, b| a.name.cmp(&b.name));
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(variables: &[(&str, &str)]) -> Told {
        read(variables.iter().map(|(name, value)| (name.into(), value.into())), 8)
    }

    #[test]
    fn each_variable_with_the_prefix_is_a_service() {
        let told = told(&[
            ("PATH", "/bin"),
            ("DISCOVERY_REDIS", "10.0.0.1:6379,10.0.0.2:6379"),
            ("DISCOVERY_ORDER_SERVICE", "orders:80"),
            ("DISCOVERY_UNUSED", ""),
            ("DISCOVERY_FILE", "/etc/services.toml"),
        ]);
        assert!(told.problems.is_empty(), "{told:?}");
        assert_eq!(told.file, Some("/etc/services.toml".into()));
        let names: Vec<_> = told.declarations.iter().map(|d| &*d.name).collect();
        assert_eq!(names, ["order_service", "redis"]);
        assert_eq!(told.declarations[1].source.endpoints().len(), 2);
    }

    #[test]
    fn all_wrong_variables_are_told_at_once() {
        let told = told(&[
            ("DISCOVERY_B", "x"),
            ("DISCOVERY_A", "http://host"),
            ("DISCOVERY_", "a:1"),
            ("DISCOVERY_C", "c:1"),
        ]);
        let names: Vec<_> = told.problems.iter().map(|problem| &*problem.name).collect();
        assert_eq!(names, ["DISCOVERY_", "DISCOVERY_A", "DISCOVERY_B"]);
        assert_eq!(told.declarations.len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_text_is_refused_and_does_not_panic() {
        use std::os::unix::ffi::OsStringExt;
        let noise = || OsString::from_vec(vec![0xff, 0xfe]);
        let told = read([("DISCOVERY_A".into(), noise()), (noise(), "a:1".into())], 8);
        assert_eq!(told.problems.len(), 1);
        assert!(told.problems[0].to_string().starts_with("DISCOVERY_A holds a value"));
    }

    #[cfg(feature = "kubernetes")]
    #[test]
    fn a_kubernetes_service_has_a_scheme_of_its_own() {
        let told = told(&[("DISCOVERY_REDIS", "k8s://redis.default:6379")]);
        let declare::Source::Kubernetes(service) = &told.declarations[0].source else {
            panic!("k8s")
        };
        assert_eq!(service.dns_name(), "redis.default.svc.cluster.local");
    }
}
