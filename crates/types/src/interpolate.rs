//! `{{ … }}` in values: `{{ secret.NAME }}` is a secret's value, `{{ NAME }}` another variable's.
//!
//! Templates are stored as they came and expanded when an instance is built. An expansion is not expanded again,
//! so a secret that happens to contain braces stays what it is, and there are no cycles.

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text that stands for itself.
    Text(&'a str),
    /// The value of the secret with this name.
    Secret(&'a str),
    /// The value of the variable with this name.
    Variable(&'a str),
}

/// A name in a template that nothing has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownName {
    /// No such secret.
    #[error("there is no secret named `{0}`: create it, or correct the name")]
    Secret(String),
    /// No such variable.
    #[error("there is no variable named `{0}`: define it, or correct the name")]
    Variable(String),
}

/// Cuts a template into its pieces. Braces that hold no name stand for themselves.
#[must_use]
pub fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut rest = template;
    let mut text_start = 0;
    let mut offset = 0;
    while let Some(open) = rest.find("{{") {
        let after = &rest[open + 2..];
        let Some(close) = after.find("}}") else { break };
        let name = after[..close].trim();
        let end = offset + open + 2 + close + 2;
        if let Some(piece) = reference(name) {
            let start = offset + open;
            if start > text_start {
                found.push(Piece::Text(&template[text_start..start]));
            }
            found.push(piece);
            text_start = end;
            rest = &template[end..];
            offset = end;
        } else {
            offset += open + 2;
            rest = after;
        }
    }
    if text_start < template.len() {
        found.push(Piece::Text(&template[text_start..]));
    }
    found
}

fn reference(name: &str) -> Option<Piece<'_>> {
    let is_name = |text: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    match name.strip_prefix("secret.") {
        Some(secret) => is_name(secret).then_some(Piece::Secret(secret)),
        None => crate::names::check_env_key(name)
            .is_ok()
            .then_some(Piece::Variable(name)),
    }
}

/// Expands a template.
///
/// # Errors
/// The first name that `secret` or `variable` has no value for.
pub fn expand(
    template: &str,
    secret: impl Fn(&str) -> Option<String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, UnknownName> {
    pieces(template)
        .into_iter()
        .map(|piece| match piece {
            Piece::Text(text) => Ok(text.to_owned()),
            Piece::Secret(name) => secret(name).ok_or_else(|| UnknownName::Secret(name.to_owned())),
            Piece::Variable(name) => variable(name).ok_or_else(|| UnknownName::Variable(name.to_owned())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(template: &str) -> Result<String, UnknownName> {
        expand(
            template,
            |name| (name == "db").then(|| "{{ HOST }}".to_owned()),
            |name| (name == "HOST").then(|| "example.org".to_owned()),
        )
    }

    #[test]
    fn names_are_replaced_and_expansions_left_alone() {
        assert_eq!(
            expanded("a {{secret.db}} b {{ HOST }}"),
            Ok("a {{ HOST }} b example.org".to_owned())
        );
    }

    #[test]
    fn braces_without_a_name_stand_for_themselves() {
        for text in [
            "",
            "{{",
            "{{ }}",
            "{{ a b }}",
            "{\"a\":{\"b\":{}}}",
            "{{ 1+1 }} }}",
        ] {
            assert_eq!(expanded(text), Ok(text.to_owned()));
        }
        assert_eq!(expanded("{{ ? {{ HOST }}"), Ok("{{ ? example.org".to_owned()));
    }

    #[test]
    fn unknown_names_are_told() {
        assert_eq!(
            expanded("{{ secret.x }}"),
            Err(UnknownName::Secret("x".to_owned()))
        );
        assert_eq!(expanded("{{ X }}"), Err(UnknownName::Variable("X".to_owned())));
    }
}
