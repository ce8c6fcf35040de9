//! Secrets that are bound to host names: the rules for the names and values, and what a program sees in place of a
//! value.
//!
//! Used by the API (rules), the controller (which hands out the placeholder) and sites (which replace it). The one
//! design choice to know: a placeholder follows from the secret's id, so copies of an instance, its disk and its memory
//! keep working, and there is no table to keep. Knowing one gives nothing: only an instance that was given the secret
//! has it replaced, and only on the way to the secret's hosts.

use crate::{SecretId, egress::Destination};

/// How every placeholder begins, so that people recognise one.
pub const PLACEHOLDER_PREFIX: &str = "tram-secret-";
/// Hosts of one secret: a service with its regions, and far less than what would make a certificate large.
pub const HOSTS_MAX: usize = 16;
/// Largest value: it has to fit into the head of a request, of which servers take 8 KiB and more.
pub const VALUE_BYTES_MAX: usize = 4096;
/// Domains that lead to other services and to the instance itself.
const OURS: [&str; 3] = [".internal", ".koyeb", ".localhost"];

/// What a program sees in place of the value. Letters, digits and dashes: it is the same in a header and in an address.
#[must_use]
pub fn placeholder(secret: SecretId) -> String {
    format!("{PLACEHOLDER_PREFIX}{}", secret.uuid().simple())
}

/// Reads the host names that a secret is to be bound to, into the form in which they are kept: lower case, without a
/// dot at the end, each once.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn hosts(given: &[String]) -> Result<Vec<String>, String> {
    if given.len() > HOSTS_MAX {
        return Err(format!("may have at most {HOSTS_MAX} names, has {}", given.len()));
    }
    let mut hosts = Vec::new();
    for text in given {
        let Some(Destination::Name(name)) = Destination::parse(text) else {
            return Err(format!(
                "`{text}` is not a host name such as `api.example.org`: no address, port or path belongs in it"
            ));
        };
        let name = name.to_string();
        if name.starts_with("*.") {
            return Err(format!(
                "`{text}` is a wildcard, below which others may have names: list each host by itself"
            ));
        }
        if let Some(domain) = OURS.iter().find(|domain| name.ends_with(**domain)) {
            return Err(format!(
                "`{text}` is a name of the private network (`{domain}`): only hosts outside can be bound to"
            ));
        }
        if !hosts.contains(&name) {
            hosts.push(name);
        }
    }
    Ok(hosts)
}

/// Checks that a value can stand in the head of a request.
///
/// # Errors
/// A sentence that says the rule that was broken; the value is not in it.
pub fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() || value.len() > VALUE_BYTES_MAX {
        return Err(format!(
            "a secret that is bound to hosts must have 1 to {VALUE_BYTES_MAX} bytes, has {}",
            value.len()
        ));
    }
    if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(
            "a secret that is bound to hosts goes into the head of requests: it may hold visible ASCII characters and \
             spaces alone (mind the end of the line of a file)"
                .to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_the_secrets_own_and_needs_no_escaping() {
        let (one, other) = (SecretId::random(), SecretId::random());
        assert_eq!(placeholder(one), placeholder(one));
        assert_ne!(placeholder(one), placeholder(other));
        assert!(
            placeholder(one)
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        );
    }

    #[test]
    fn names_are_kept_in_one_form_and_nothing_but_names_is_taken() {
        let read = |names: &[&str]| hosts(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            read(&["API.Example.org.", "api.example.org", "b.example.org"]),
            Ok(vec!["api.example.org".to_owned(), "b.example.org".to_owned()])
        );
        assert_eq!(read(&[]), Ok(Vec::new()));
        for wrong in [
            "",
            "*",
            "*.example.org",
            "https://api.example.org",
            "api.example.org:443",
            "api.example.org/v1",
            "10.0.0.1",
            "::1",
            "10.0.0.0/8",
            "localhost",
            "db.shop.internal",
            "a b.example.org",
            "api.example.org\r\nx",
        ] {
            assert!(read(&[wrong]).is_err(), "{wrong}");
        }
        assert!(hosts(&vec!["a.example.org".to_owned(); HOSTS_MAX + 1]).is_err());
    }

    #[test]
    fn values_must_fit_into_a_head() {
        assert_eq!(check_value("sk-live ~!"), Ok(()));
        for wrong in ["", "a\r\nHost: b", "key\n", "k\u{e9}y", "a\0b", "tab\t"] {
            assert!(check_value(wrong).is_err(), "{wrong:?}");
        }
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        assert!(!check_value(&long).unwrap_err().contains("xx"));
    }
}
