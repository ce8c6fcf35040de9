//! How a call fails, and the hint for each way.

use std::{fmt, time::Duration};

use serde_json::Value;

use crate::view::{list, text};

/// Longest part of a body that is no error body which is shown: enough to recognise a proxy's page.
const EXCERPT_CHARACTERS: usize = 200;

/// A call's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address makes no sense.
    #[error("`{url}` is not the address of a server: {reason}")]
    Address {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP client could not be made.
    #[error("cannot prepare HTTP")]
    Build(#[source] reqwest::Error),
    /// Nobody answers.
    #[error("cannot reach {url}")]
    Unreachable {
        /// The server.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Whoever answers has no certificate that this machine trusts.
    #[error("cannot trust {url}")]
    Untrusted {
        /// The server.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke during a call.
    #[error("the connection to {url} broke")]
    Broken {
        /// The server.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The server took the call and did not answer in time.
    #[error("no answer to {call} within {}s", .after.as_secs())]
    TimedOut {
        /// The path of the call.
        call: String,
        /// How long we waited.
        after: Duration,
    },
    /// The server refused.
    #[error("{message}{}", Fields(.fields))]
    Api {
        /// The server.
        url: String,
        /// HTTP status.
        status: u16,
        /// Kind of the refusal, such as `not_found`.
        code: String,
        /// What the server says, without a period.
        message: String,
        /// What is wrong with which member of the request.
        fields: Vec<Field>,
    },
    /// The answer is not one of this API.
    #[error("{url} does not answer as the API does: {what}")]
    Unexpected {
        /// What was called.
        url: String,
        /// What is odd.
        what: String,
    },
    /// A stream broke.
    #[error("the stream broke: {0}")]
    Stream(String),
}

/// What is wrong with one member of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Dotted path of the member.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

struct Fields<'f>(&'f [Field]);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Field { field, description } in self.0 {
            write!(formatter, "\n  {field}: {description}")?;
        }
        Ok(())
    }
}

impl Error {
    /// Reads an error body.
    pub(crate) fn of_reply(url: &str, status: u16, body: &[u8]) -> Self {
        let mut reply: Value = serde_json::from_slice(body).unwrap_or_default();
        // Where the server speaks OpenAI's contract, its refusals do too.
        if let Some(error) = reply.get_mut("error").filter(|error| error.is_object()) {
            reply = error.take();
        }
        let mut message = text(&reply, "message").trim().trim_end_matches('.').to_owned();
        if message.is_empty() {
            let excerpt: String = String::from_utf8_lossy(body)
                .chars()
                .take(EXCERPT_CHARACTERS)
                .collect();
            message = format!("{url} answered with status {status}: {}", excerpt.trim())
                .trim_end_matches(": ")
                .to_owned();
        }
        Self::Api {
            url: url.to_owned(),
            status,
            code: text(&reply, "code").to_owned(),
            message,
            fields: list(&reply, "fields")
                .iter()
                .map(|field| Field {
                    field: text(field, "field").to_owned(),
                    description: text(field, "description").trim_end_matches('.').to_owned(),
                })
                .collect(),
        }
    }

    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => Some(
                "is tram up running? start it with `sudo tram up`, or choose another with `tram context use`"
                    .to_owned(),
            ),
            Self::Untrusted { .. } => Some(
                "if it is this machine's own, `sudo tram trust` makes it trusted; SSL_CERT_FILE names other \
                 authorities"
                    .to_owned(),
            ),
            Self::Api { status: 401, url, .. } => Some(format!(
                "log in with `tram login --url {url} --token TOKEN`, or set TRAM_TOKEN"
            )),
            Self::Api { status: 403, .. } => Some(
                "this token may not do that; use another with `tram login` or `tram context use`".to_owned(),
            ),
            Self::Api { status: 429, .. } => Some("too many calls; wait a minute and try again".to_owned()),
            Self::Api {
                status: 500..=599, ..
            } => Some("this is the server's fault; its log says more".to_owned()),
            Self::TimedOut { .. } | Self::Broken { .. } | Self::Stream(_) => {
                Some("try again; if it persists, the server's log says more".to_owned())
            }
            Self::Address { .. } => {
                Some("an address looks like http://127.0.0.1:7080 or https://cloud.example.org".to_owned())
            }
            Self::Unexpected { .. } => {
                Some("check the address with `tram context current`: it must be the API's".to_owned())
            }
            Self::Api { fields, .. } => arguments_for(fields),
            Self::Build(_) => None,
        }
    }

    /// Whether the same call may go well a moment later: the server restarts, or was not reached.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Broken { .. }
                | Self::TimedOut { .. }
                | Self::Stream(_)
                | Self::Api {
                    status: 429 | 500..=599,
                    ..
                }
        )
    }
}

/// Which arguments of `tram deploy` write which members of a definition.
const ARGUMENTS: &[(&str, &str)] = &[
    ("definition.docker.image_registry_secret", "--registry-secret"),
    ("definition.docker.image", "IMAGE"),
    ("definition.env", "--env and --secret"),
    ("definition.health_checks", "--check"),
    ("definition.instance_types", "--instance-type"),
    ("definition.name", "--name"),
    ("definition.ports", "--port"),
    ("definition.proxy_ports", "--proxy-port"),
    ("definition.regions", "--region"),
    ("definition.routes", "--route"),
    (
        "definition.scalings",
        "--min, --max, --scale-on, --sleep-after and --light-sleep-after",
    ),
    ("definition.strategy", "--strategy"),
];

/// The arguments behind the members of a definition that were refused, for people see arguments and no members.
fn arguments_for(fields: &[Field]) -> Option<String> {
    let mut named: Vec<&str> = Vec::new();
    for Field { field, .. } in fields {
        let argument = ARGUMENTS.iter().find(|(member, _)| field.starts_with(member));
        if let Some((_, argument)) = argument
            && !named.contains(argument)
        {
            named.push(argument);
        }
    }
    (!named.is_empty()).then(|| format!("look at {} of `tram deploy`", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_is_read_with_its_fields() {
        let error = Error::of_reply(
            "http://x",
            400,
            br#"{"status":400,"code":"invalid_argument","message":"The request is not valid.",
                "fields":[{"field":"name","description":"already exists."}]}"#,
        );
        assert_eq!(
            error.to_string(),
            "The request is not valid\n  name: already exists"
        );
        assert_eq!(error.hint(), None);
        assert!(!error.is_passing());
    }

    #[test]
    fn a_foreign_body_is_shown_in_part() {
        let error = Error::of_reply("http://x", 502, b"<html>Bad Gateway</html>");
        assert_eq!(
            error.to_string(),
            "http://x answered with status 502: <html>Bad Gateway</html>"
        );
        assert!(error.is_passing());
        assert_eq!(
            Error::of_reply("http://x", 404, b"").to_string(),
            "http://x answered with status 404"
        );
    }
}
