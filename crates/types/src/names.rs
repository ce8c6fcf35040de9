//! Naming rules (digest, section 1.7) and the names the platform makes itself.

/// Longest name of an app; the Python SDK sends `sandbox-app-<name>-<seconds>`, so this is a generous bound that
/// still fits a DNS label together with nothing else.
pub const APP_NAME_MAX_CHARACTERS: usize = 64;
/// Longest name of a service: it is a label of the service's name in the private network.
pub const SERVICE_NAME_MAX_CHARACTERS: usize = DNS_LABEL_MAX_CHARACTERS;
/// Longest name of a secret, a volume, a project.
pub const NAME_MAX_CHARACTERS: usize = 64;
/// Longest domain name, by the DNS.
pub const DOMAIN_MAX_CHARACTERS: usize = 253;
/// Longest label of a domain name, by the DNS.
pub const DNS_LABEL_MAX_CHARACTERS: usize = 63;

/// Checks a name made of lower-case letters, digits and dashes.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_slug(name: &str, min: usize, max: usize) -> Result<(), String> {
    let length = name.chars().count();
    if !(min..=max).contains(&length) {
        return Err(format!("must have {min} to {max} characters, has {length}"));
    }
    if !name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    {
        return Err("may only contain lower-case letters, digits and dashes".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Err("must start and end with a letter or a digit".to_owned());
    }
    Ok(())
}

/// Checks the name of an app.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_app_name(name: &str) -> Result<(), String> {
    check_slug(name, 3, APP_NAME_MAX_CHARACTERS)
}

/// Checks the name of a service.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_service_name(name: &str) -> Result<(), String> {
    check_slug(name, 2, SERVICE_NAME_MAX_CHARACTERS)
}

/// Checks the name of a secret: letters, digits, dashes, underscores and dots, starting with a letter or digit.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_secret_name(name: &str) -> Result<(), String> {
    let length = name.chars().count();
    if !(2..=NAME_MAX_CHARACTERS).contains(&length) {
        return Err(format!(
            "must have 2 to {NAME_MAX_CHARACTERS} characters, has {length}"
        ));
    }
    if !name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    {
        return Err("may only contain letters, digits, dashes, underscores and dots".to_owned());
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("must start with a letter or a digit".to_owned());
    }
    Ok(())
}

/// Checks the name of a volume or of a snapshot of one.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_volume_name(name: &str) -> Result<(), String> {
    check_secret_name(name)
}

/// Checks the name of an environment variable.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_env_key(key: &str) -> Result<(), String> {
    if key.is_empty() {
        return Err("must not be empty".to_owned());
    }
    let mut characters = key.chars();
    let first_fits = characters
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first_fits || !characters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err("must start with a letter or `_` and contain only letters, digits and `_`".to_owned());
    }
    Ok(())
}

/// Checks the name of a custom domain: at least two labels, by the rules of the DNS.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_domain_name(name: &str) -> Result<(), String> {
    if name.len() > DOMAIN_MAX_CHARACTERS {
        return Err(format!("must have at most {DOMAIN_MAX_CHARACTERS} characters"));
    }
    let labels: Vec<&str> = name.split('.').collect();
    if labels.len() < 2 {
        return Err("must be a full domain name, such as `shop.example.org`".to_owned());
    }
    if labels.contains(&"*") {
        return Err("must not be a wildcard: add each name by itself, such as `shop.example.org`".to_owned());
    }
    for label in labels {
        check_slug(label, 1, DNS_LABEL_MAX_CHARACTERS).map_err(|rule| format!("part `{label}` {rule}"))?;
    }
    Ok(())
}

/// The name of an auto-assigned domain: `<app>-<organization>-<8 hex>.<base domain>`, its first label cut to what
/// the DNS allows, the end kept since it makes the name unique.
#[must_use]
pub fn auto_assigned_domain(app: &str, organization: &str, unique: u32, base_domain: &str) -> String {
    let tail = format!("-{organization}-{unique:08x}");
    let tail = if tail.len() > DNS_LABEL_MAX_CHARACTERS - 3 {
        format!("-{unique:08x}")
    } else {
        tail
    };
    let room = DNS_LABEL_MAX_CHARACTERS - tail.len();
    let head: String = app.chars().take(room).collect();
    format!("{}{tail}.{base_domain}", head.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_names() {
        for good in ["web", "sandbox-app-quick-sandbox-1795000000", "a1b"] {
            assert_eq!(check_app_name(good), Ok(()), "{good}");
        }
        for bad in ["", "ab", "Web", "a_b", "-web", "web-", &"a".repeat(65)] {
            assert!(check_app_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn service_names_are_labels_of_the_dns() {
        assert_eq!(check_service_name(&"a".repeat(63)), Ok(()));
        assert!(check_service_name(&"a".repeat(64)).is_err());
    }

    #[test]
    fn domains_fit_the_dns() {
        let name = auto_assigned_domain(&"a".repeat(64), "acme", 0x1a2b_3c4d, "tram.localhost");
        let label = name.split('.').next().unwrap();
        assert!(label.len() <= DNS_LABEL_MAX_CHARACTERS);
        assert!(label.ends_with("-acme-1a2b3c4d"));
        assert_eq!(check_domain_name(&name), Ok(()));
        assert!(check_domain_name("localhost").is_err());
        assert!(
            check_domain_name("*.example.org")
                .unwrap_err()
                .contains("wildcard")
        );
    }

    #[test]
    fn env_keys() {
        assert_eq!(check_env_key("_A1"), Ok(()));
        assert!(check_env_key("1A").is_err());
        assert!(check_env_key("A-B").is_err());
    }
}
