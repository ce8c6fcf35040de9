//! The audit feed: every change that a client makes, noted in one place after it succeeded.
//!
//! A note that cannot be kept does not undo the change, which is done; the failure is logged instead.

use http::Method;
use serde_json::{Value, json};
use tram_store::intent::NewActivity;
use tram_types::OrganizationId;

use crate::{auth::Caller, endpoint::Incoming, serve::chain, state::ApiState};

/// What a change is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verb {
    /// Kind of the object, such as `service`.
    kind: &'static str,
    /// Past tense, such as `paused`.
    verb: &'static str,
}

/// What a request to this endpoint does, if it changes something worth a note.
pub(crate) fn verb(method: &Method, path: &str) -> Option<Verb> {
    let mut parts = path.trim_start_matches("/v1/").split('/');
    let kind = match parts.next()? {
        "apps" | "compose" => "app",
        "services" => "service",
        "deployments" => "deployment",
        "secrets" => "secret",
        "domains" => "domain",
        "credentials" => "credential",
        "projects" => "project",
        "organizations" => "organization",
        _ => return None,
    };
    let verb = match (method.as_str(), parts.nth(1)) {
        ("GET", _) => return None,
        ("POST", Some("pause")) => "paused",
        ("POST", Some("resume")) => "resumed",
        ("POST", Some("redeploy")) => "redeployed",
        ("POST", Some("cancel")) => "canceled",
        ("POST", Some("reveal")) => "revealed",
        ("POST", Some("refresh")) => "refreshed",
        ("POST", Some("switch" | "access_token")) => "entered",
        ("PUT" | "DELETE", Some("scale")) => "scaled",
        ("DELETE", _) => "deleted",
        ("POST", None) => "created",
        _ => "updated",
    };
    Some(Verb { kind, verb })
}

/// A note to be made when the change has succeeded.
pub(crate) struct Note {
    api: ApiState,
    organization: OrganizationId,
    actor: Value,
    verb: Verb,
    id: String,
}

impl Note {
    /// `None` when the request only checks.
    pub(crate) fn of(incoming: &Incoming, verb: Option<Verb>) -> Option<Self> {
        let query = incoming.parts.uri.query().unwrap_or_default();
        if query.split('&').any(|pair| pair == "dry_run=true") {
            return None;
        }
        let caller = incoming.caller.as_ref()?;
        Some(Self {
            api: incoming.api.clone(),
            organization: caller.organization,
            actor: actor(caller),
            verb: verb?,
            id: incoming
                .path
                .first()
                .map(|(_, value)| value.clone())
                .unwrap_or_default(),
        })
    }

    /// Keeps the note; the object's id and name are taken from the answer where it has them.
    pub(crate) async fn keep(self, reply: &Value) {
        let object = reply
            .as_object()
            .and_then(|members| members.values().find(|member| member.get("id").is_some()));
        let text = |member: &str| {
            object
                .and_then(|object| object.get(member)?.as_str())
                .unwrap_or_default()
        };
        let id = match self.id.is_empty() {
            true => text("id"),
            false => self.id.as_str(),
        };
        let activity = NewActivity {
            organization_id: self.organization,
            actor: self.actor,
            verb: self.verb.verb.to_owned(),
            object: json!({
                "id": id,
                "name": text("name"),
                "type": self.verb.kind,
                "deleted": self.verb.verb == "deleted",
            }),
            metadata: json!({}),
        };
        if let Err(error) = self.api.store.add_activity(activity).await {
            tracing::error!(error = %chain(&error), "an activity was not kept");
        }
    }
}

fn actor(caller: &Caller) -> Value {
    match caller.user.as_str() {
        "" => json!({
            "id": caller.credential.to_string(),
            "name": caller.credential_name,
            "type": "credential",
        }),
        user => json!({ "id": user, "name": user, "type": "user" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_have_a_verb_and_looks_have_none() {
        for (method, path, expected) in [
            (Method::POST, "/v1/apps", Some(("app", "created"))),
            (
                Method::POST,
                "/v1/services/{id}/pause",
                Some(("service", "paused")),
            ),
            (
                Method::PUT,
                "/v1/services/{id}/scale",
                Some(("service", "scaled")),
            ),
            (Method::PATCH, "/v1/domains/{id}", Some(("domain", "updated"))),
            (Method::DELETE, "/v1/secrets/{id}", Some(("secret", "deleted"))),
            (
                Method::POST,
                "/v1/secrets/{id}/reveal",
                Some(("secret", "revealed")),
            ),
            (Method::GET, "/v1/apps", None),
            (Method::POST, "/v1/services-autocomplete", None),
            (Method::POST, "/v1/test/auth", None),
        ] {
            let found = verb(&method, path).map(|verb| (verb.kind, verb.verb));
            assert_eq!(found, expected, "{method} {path}");
        }
    }
}
