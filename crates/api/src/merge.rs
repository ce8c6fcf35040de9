//! PUT replaces, PATCH merges.
//!
//! Updates are made on the JSON of the object as it is: a PATCH lays the given members over it, a PUT starts from
//! nothing. `update_mask` (comma separated, dotted) limits either to the members it names.

use serde_json::{Map, Value};

/// The members of a `oneof`: giving one unsets the others.
const ALTERNATIVES: &[&[&str]] = &[
    &["docker", "git", "archive", "database", "model"],
    &["cloudflare", "koyeb"],
];

/// Lays `given` over `current`: members that are objects are merged, everything else replaces, `null` is no change.
pub(crate) fn patch(current: &Value, given: &Value) -> Value {
    let (Value::Object(current), Value::Object(given)) = (current, given) else {
        return if given.is_null() {
            current.clone()
        } else {
            given.clone()
        };
    };
    let mut merged = current.clone();
    for group in ALTERNATIVES {
        let chosen = group
            .iter()
            .find(|name| given.get(**name).is_some_and(|member| !member.is_null()));
        if let Some(chosen) = chosen {
            merged.retain(|name, _| name == chosen || !group.contains(&name.as_str()));
        }
    }
    for (name, member) in given {
        let laid = merged
            .get(name)
            .map_or_else(|| member.clone(), |current| patch(current, member));
        if !laid.is_null() {
            merged.insert(name.clone(), laid);
        }
    }
    Value::Object(merged)
}

/// Only those members of `given` that `mask` names; all of them when it names none.
pub(crate) fn masked(given: &Value, mask: &str) -> Value {
    let names: Vec<&str> = mask
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if names.is_empty() {
        return given.clone();
    }
    let mut kept = Value::Object(Map::new());
    for name in names {
        let parts: Vec<&str> = name.split('.').collect();
        copy(given, &mut kept, &parts);
    }
    kept
}

fn copy(from: &Value, to: &mut Value, parts: &[&str]) {
    let [first, rest @ ..] = parts else { return };
    let (Some(member), Value::Object(to)) = (from.get(first), to) else {
        return;
    };
    if rest.is_empty() {
        to.insert((*first).to_owned(), member.clone());
        return;
    }
    let below = to
        .entry((*first).to_owned())
        .or_insert_with(|| Value::Object(Map::new()));
    copy(member, below, rest);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_merged_and_lists_replaced() {
        let current =
            json!({"name":"a","env":[1,2],"strategy":{"type":"x"},"docker":{"image":"i","command":"c"}});
        assert_eq!(
            patch(&current, &json!({"env":[3],"name":null,"docker":{"image":"j"}})),
            json!({"name":"a","env":[3],"strategy":{"type":"x"},"docker":{"image":"j","command":"c"}})
        );
    }

    #[test]
    fn another_source_takes_the_place_of_the_first() {
        let current = json!({"docker":{"image":"i"}});
        assert_eq!(
            patch(&current, &json!({"git":{"repository":"r"}})),
            json!({"git":{"repository":"r"}})
        );
        assert_eq!(patch(&current, &json!({"git":null})), current);
    }

    #[test]
    fn a_mask_limits_what_is_taken() {
        let given = json!({"name":"a","life_cycle":{"x":1,"y":2}});
        assert_eq!(masked(&given, ""), given);
        assert_eq!(masked(&given, "name"), json!({"name":"a"}));
        assert_eq!(
            masked(&given, "life_cycle.y, nothing"),
            json!({"life_cycle":{"y":2}})
        );
    }
}
