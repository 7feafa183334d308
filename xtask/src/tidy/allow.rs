//! The allow-list: which rule a file may break, and why. An entry that allows nothing any more is a breach itself.

use super::Finding;

/// Where the list is, from the top of the checkout.
pub(super) const FILE: &str = "xtask/tidy-allow.txt";

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    line: usize,
    rule: String,
    path: String,
}

/// Reads the list: `RULE PATH REASON` a line; blank lines and those that begin with `#` aside. A line without a reason
/// is a finding.
#[must_use]
pub(super) fn parse(text: &str) -> (Vec<Allowance>, Vec<Finding>) {
    let (mut allowances, mut found) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(rule), Some(path), Some(_reason)) => {
                let (rule, path) = (rule.to_owned(), path.to_owned());
                allowances.push(Allowance { line: index + 1, rule, path });
            }
            _ => found.push(finding(index + 1, "write RULE PATH REASON".to_owned())),
        }
    }
    (allowances, found)
}

/// What is left of `found` once the list is applied, and the entries of the list that were not needed.
#[must_use]
pub(super) fn apply(allowances: &[Allowance], found: Vec<Finding>) -> Vec<Finding> {
    let allows =
        |one: &Allowance, finding: &Finding| one.rule == finding.rule && one.path == finding.path;
    let stale = allowances.iter().filter(|one| !found.iter().any(|finding| allows(one, finding)));
    let stale: Vec<_> = stale
        .map(|one| {
            finding(
                one.line,
                format!("{} no longer breaks {}: remove the line", one.path, one.rule),
            )
        })
        .collect();
    let kept =
        found.into_iter().filter(|finding| !allowances.iter().any(|one| allows(one, finding)));
    kept.chain(stale).collect()
}

fn finding(line: usize, cure: String) -> Finding {
    Finding { rule: "allow-list", path: FILE.to_owned(), line, cure }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breach(rule: &'static str, path: &str) -> Finding {
        Finding { rule, path: path.to_owned(), line: 1, cure: "mend it".to_owned() }
    }

    #[test]
    fn a_listed_file_may_break_that_rule_and_no_other() {
        let (list, found) = parse("# why\n\nlong-file a/b.rs one table, read as a whole\n");
        assert_eq!(found, []);
        let all = vec![
            breach("long-file", "a/b.rs"),
            breach("long-file", "a/c.rs"),
            breach("first-line", "a/b.rs"),
        ];
        assert_eq!(apply(&list, all.clone()), all[1..]);
    }

    #[test]
    fn an_entry_that_allows_nothing_is_a_breach() {
        let (list, _) = parse("long-file a/b.rs one table\n\nlong-file a/c.rs one table");
        let left = apply(&list, vec![breach("long-file", "a/b.rs")]);
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].rule, left[0].line), ("allow-list", 3));
        assert!(left[0].cure.starts_with("a/c.rs no longer breaks long-file"), "{}", left[0]);
    }

    #[test]
    fn an_entry_without_a_reason_is_a_breach() {
        let (list, found) = parse("long-file a/b.rs\nlong-file a/c.rs one table");
        assert_eq!(list.len(), 1);
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [1]);
    }
}
