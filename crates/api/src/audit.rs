//! The audit feed: every change that a client makes, noted in one place after it succeeded, and every token that
//! is made and every command that is run.
//!
//! An endpoint whose query can ask for a check alone says so itself ([`crate::query::Query::only_checks`]).
//! A note that cannot be kept does not undo the change, which is done; the failure is logged instead.

use http::Method;
use serde_json::{Value, json};
use tram_store::intent::NewActivity;
use tram_types::{InstanceId, OrganizationId};

use crate::{auth::Caller, endpoint::Incoming, serve::chain, state::ApiState};

/// What a change is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verb {
    /// Kind of the object, such as `service`.
    kind: &'static str,
    /// Past tense, such as `paused`.
    verb: &'static str,
}

impl Verb {
    const fn new(kind: &'static str, verb: &'static str) -> Self {
        Self { kind, verb }
    }
}

/// What running a command in an instance is called.
const RAN_A_COMMAND: Verb = Verb::new("instance", "executed");

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
        "volumes" => "volume",
        "snapshots" => "snapshot",
        "instance_snapshots" => "instance_snapshot",
        "projects" => "project",
        "service_pools" => "service_pool",
        "claim" => "claim",
        "organizations" => "organization",
        "model_limits" => "model_limit",
        "model_routes" => "model_route",
        // Tokens that are made without a credential of their own.
        "account" => {
            return match (method.as_str(), parts.next()) {
                ("POST", Some("session")) => Some(Verb::new("session", "created")),
                ("PUT", Some("refresh")) => Some(Verb::new("session", "refreshed")),
                _ => None,
            };
        }
        "unscope_organization_token" => return Some(Verb::new("session", "created")),
        _ => return None,
    };
    let verb = match (method.as_str(), parts.nth(1)) {
        ("GET", _) => return None,
        ("POST", Some("pause")) => "paused",
        ("POST", Some("resume")) => "resumed",
        ("POST", Some("redeploy")) => "redeployed",
        ("POST", Some("cancel")) => "canceled",
        ("POST", Some("reveal")) => "revealed",
        ("POST", Some("verify")) => "verified",
        ("POST", Some("refresh")) => "refreshed",
        ("POST", Some("switch" | "access_token")) => "entered",
        ("PUT" | "DELETE", Some("scale")) => "scaled",
        ("DELETE", _) => "deleted",
        // Of volumes and snapshots, a POST to the object itself changes it.
        ("POST", None) if path.contains('{') => "updated",
        ("POST", None) => "created",
        _ => "updated",
    };
    Some(Verb { kind, verb })
}

/// Notes that a command was run in an instance. The command itself is not kept: it may hold secrets.
pub(crate) async fn note_command(api: &ApiState, caller: &Caller, instance: InstanceId) {
    let note = Note::new(api, caller, RAN_A_COMMAND, instance.to_string());
    note.add(RAN_A_COMMAND, &note.id, "").await;
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
    fn new(api: &ApiState, caller: &Caller, verb: Verb, id: String) -> Self {
        Self {
            api: api.clone(),
            organization: caller.organization,
            actor: actor(caller),
            verb,
            id,
        }
    }

    /// A note on this request; `None` when it does nothing that is noted.
    pub(crate) fn of(incoming: &Incoming, verb: Option<Verb>) -> Option<Self> {
        let caller = incoming.caller.as_ref()?;
        let id = incoming.path.first().map(|(_, value)| value.clone());
        Some(Self::new(&incoming.api, caller, verb?, id.unwrap_or_default()))
    }

    /// Keeps the note; the object's id and name are taken from the answer where it has them. Whatever else the
    /// answer lists as made along with the object, as the services of a composition, is noted too.
    pub(crate) async fn keep(self, reply: &Value) {
        let object = reply
            .as_object()
            .and_then(|members| members.values().find(|member| member.get("id").is_some()));
        let text = |object: Option<&Value>, member: &str| {
            object
                .and_then(|object| object.get(member)?.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let id = match (self.id.as_str(), self.verb.kind) {
            // What the answer has as the id of a session is its token.
            ("", "session") => String::new(),
            ("", "claim") => text(Some(reply), "claim_id"),
            ("", _) => text(object, "id"),
            (id, _) => id.to_owned(),
        };
        self.add(self.verb, &id, &text(object, "name")).await;
        if self.verb.kind == "app" {
            let services = reply.get("services").and_then(Value::as_array);
            for service in services.into_iter().flatten() {
                let service = Some(service);
                let verb = Verb::new("service", "deployed");
                self.add(verb, &text(service, "id"), &text(service, "name")).await;
            }
        }
    }

    async fn add(&self, verb: Verb, id: &str, name: &str) {
        let activity = NewActivity {
            organization_id: self.organization,
            actor: self.actor.clone(),
            verb: verb.verb.to_owned(),
            object: json!({
                "id": id,
                "name": name,
                "type": verb.kind,
                "deleted": verb.verb == "deleted",
            }),
            metadata: json!({}),
        };
        if let Err(error) = self.api.store.add_activity(activity).await {
            tracing::error!(error = %chain(&error), "an activity was not kept");
        }
    }
}

fn actor(caller: &Caller) -> Value {
    let id = actor_id(caller);
    match caller.user.as_str() {
        "" => json!({ "id": id, "name": caller.credential_name, "type": "credential" }),
        user => json!({ "id": id, "name": user, "type": "user" }),
    }
}

/// How the feed calls who did something: a user, or a token that speaks for none.
pub(crate) fn actor_id(caller: &Caller) -> String {
    match caller.user.as_str() {
        "" => caller.credential.to_string(),
        user => user.to_owned(),
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
            (Method::POST, "/v1/volumes", Some(("volume", "created"))),
            (Method::POST, "/v1/volumes/{id}", Some(("volume", "updated"))),
            (
                Method::DELETE,
                "/v1/snapshots/{id}",
                Some(("snapshot", "deleted")),
            ),
            (
                Method::POST,
                "/v1/secrets/{id}/reveal",
                Some(("secret", "revealed")),
            ),
            (Method::POST, "/v1/account/session", Some(("session", "created"))),
            (Method::PUT, "/v1/account/refresh", Some(("session", "refreshed"))),
            (Method::DELETE, "/v1/account/logout", None),
            (Method::PATCH, "/v1/account/settings", None),
            (Method::POST, "/v1/claim", Some(("claim", "created"))),
            (
                Method::PUT,
                "/v1/model_limits/{id}",
                Some(("model_limit", "updated")),
            ),
            (
                Method::PUT,
                "/v1/model_routes/{id}",
                Some(("model_route", "updated")),
            ),
            (
                Method::DELETE,
                "/v1/service_pools/{id}",
                Some(("service_pool", "deleted")),
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
