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
///
/// The time it takes grows with the length of the template and with nothing else: strangers write templates.
pub fn pieces(template: &str) -> impl Iterator<Item = Piece<'_>> {
    Pieces {
        rest: template,
        pending: None,
    }
}

struct Pieces<'a> {
    /// What was not cut yet.
    rest: &'a str,
    /// The reference behind the text that was handed out last.
    pending: Option<Piece<'a>>,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if let Some(piece) = self.pending.take() {
            return Some(piece);
        }
        let rest = self.rest;
        let mut from = 0;
        while let Some(open) = rest[from..].find("{{").map(|found| from + found) {
            let Some(close) = rest[open + 2..].find("}}").map(|found| open + 2 + found) else {
                break;
            };
            let end = close + 2;
            if let Some((start, piece)) = last_reference(&rest[open..close]) {
                self.rest = &rest[end..];
                if open + start == 0 {
                    return Some(piece);
                }
                self.pending = Some(piece);
                return Some(Piece::Text(&rest[..open + start]));
            }
            from = end;
        }
        self.rest = "";
        (!rest.is_empty()).then_some(Piece::Text(rest))
    }
}

/// The reference that ends with `text`, and where it starts. No name holds a brace, so of several openings only the
/// last can be that of a name; openings are counted in twos, so an odd brace belongs to what follows it.
fn last_reference(text: &str) -> Option<(usize, Piece<'_>)> {
    let start = text.rfind("{{")?;
    let (before, name) = text.split_at(start + 2);
    let braces = before.bytes().rev().take_while(|byte| *byte == b'{').count();
    if braces % 2 == 1 {
        return None;
    }
    Some((start, reference(name.trim())?))
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

    /// What is meant, step by step: the first opening, the first close behind it, and when that is no name, the next
    /// opening.
    fn pieces_one_by_one(template: &str) -> Vec<Piece<'_>> {
        let mut found = Vec::new();
        let (mut text_start, mut offset) = (0, 0);
        while let Some(open) = template[offset..].find("{{").map(|open| offset + open) {
            let Some(close) = template[open + 2..].find("}}").map(|close| open + 2 + close) else {
                break;
            };
            offset = open + 2;
            if let Some(piece) = reference(template[open + 2..close].trim()) {
                if open > text_start {
                    found.push(Piece::Text(&template[text_start..open]));
                }
                found.push(piece);
                offset = close + 2;
                text_start = offset;
            }
        }
        if text_start < template.len() {
            found.push(Piece::Text(&template[text_start..]));
        }
        found
    }

    proptest::proptest! {
        #[test]
        fn every_reference_is_found(template in "([{}]|A| |secret\\.x|\u{1F980}){0,40}") {
            proptest::prop_assert_eq!(
                pieces(&template).collect::<Vec<_>>(),
                pieces_one_by_one(&template),
                "{}", template
            );
        }
    }

    #[test]
    fn many_openings_take_no_longer_than_other_text() {
        const OPENINGS: usize = 4 * 1024 * 1024;
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let template = "{{".repeat(OPENINGS) + "}}";
            let _ = told.send(pieces(&template).count());
        });
        let deadline = std::time::Duration::from_secs(60);
        assert_eq!(heard.recv_timeout(deadline), Ok(1));
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
