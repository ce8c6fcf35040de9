//! Small helpers: image verification and connection tests.

use axum::{Json, response::IntoResponse};
use serde_json::Value;
use tram_site::RegistryCredentials;
use tram_store::record::{Role, Secret};
use tram_types::{SecretId, status::SecretType};

use crate::{
    auth::{Access, Caller},
    endpoint::{Call, Endpoint, get, post},
    error::Error,
    query::Nothing,
    state::ImageVerdict,
    wire::{
        account::{LoginMethodReply, LoginMethodReplyMethod},
        helper::{
            TestAnonReply, TestAuthReply, TestAuthRequest, VerifyDockerImageReply,
            VerifyDockerImageReplyErrCode,
        },
    },
};

crate::query! {
    /// Which image, and how to be let in.
    struct Image {
        image: Option<String>,
        secret_id: Option<String>,
    }
    /// Who wants to log in.
    struct Login {
        email: Option<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/docker-helper/verify", "VerifyDockerImage", verify),
        Endpoint::stream::<Nothing, _, _>("/v1/test/anon", "TestAnon", Access::Anonymous, |_| async {
            Ok(Json(TestAnonReply {}).into_response())
        })
        .giving::<TestAnonReply>(),
        post("/v1/test/auth", "TestAuth", test_auth).access(Access::Read),
        Endpoint::stream::<Login, _, _>(
            "/v1/account/login_method",
            "LoginMethod",
            Access::Anonymous,
            |_| async {
                let method = LoginMethodReplyMethod::Koyeb;
                Ok(Json(LoginMethodReply { method }).into_response())
            },
        )
        .giving::<LoginMethodReply>(),
    ]
}

async fn test_auth(call: Call<Nothing, TestAuthRequest>) -> Result<TestAuthReply, Error> {
    Ok(TestAuthReply {
        payload: call.body.payload,
        user_id: call.caller.user,
        organization_id: call.caller.organization.to_string(),
        workspace_id: String::new(),
    })
}

/// One official client asks this before it creates a service and gives up when the answer is no.
async fn verify(call: Call<Image>) -> Result<VerifyDockerImageReply, Error> {
    let Some(image) = call.query.image.as_deref() else {
        return Err(Error::InvalidParameters(vec![tram_types::FieldViolation::new(
            "image",
            "must name an image",
        )]));
    };
    let credentials = match call.query.secret_id.as_deref() {
        None => None,
        // Who uses a login learns whether it is good, and has it sent: that is more than reading.
        Some(_) if call.caller.role == Role::ReadOnly => {
            return Err(Error::Forbidden(
                "this API token may only read, and may not use secrets: leave out `secret_id`, or use a token whose role is owner",
            ));
        }
        Some(given) => Some(credentials(&call, given).await?),
    };
    Ok(match call.api.verifier.verify(image, credentials).await {
        ImageVerdict::Good => VerifyDockerImageReply {
            success: true,
            reason: String::new(),
            code: VerifyDockerImageReplyErrCode::Unknown,
        },
        ImageVerdict::Bad { code, reason } => VerifyDockerImageReply {
            success: false,
            reason,
            code,
        },
    })
}

/// What a registry secret, given by id or by name, says.
async fn credentials<Q, B>(call: &Call<Q, B>, given: &str) -> Result<RegistryCredentials, Error> {
    let organization = call.caller.organization;
    let store = &call.api.store;
    let secret: Secret = match given.parse::<SecretId>() {
        Ok(id) => store.secret(organization, id).await?,
        Err(_) => named(call, given)
            .await?
            .ok_or_else(|| Error::not_found("secret", given))?,
    };
    if secret.kind != SecretType::Registry {
        return Err(Error::InvalidParameters(vec![tram_types::FieldViolation::new(
            "secret_id",
            "must be a secret of type REGISTRY",
        )]));
    }
    let value: Value = serde_json::from_slice(&store.reveal_secret(organization, secret.id).await?.value)
        .map_err(|error| Error::internal("reading the value of a secret", error))?;
    Ok(registry(&value))
}

/// The secret with this name: the chosen project's, else one of the whole organization.
async fn named<Q, B>(call: &Call<Q, B>, name: &str) -> Result<Option<Secret>, Error> {
    let Caller {
        organization,
        project,
        ..
    } = call.caller;
    let store = &call.api.store;
    if project.is_some()
        && let Some(found) = store.secret_by_name(organization, project, name).await?
    {
        return Ok(Some(found));
    }
    Ok(store.secret_by_name(organization, None, name).await?)
}

/// The login of a registry out of the JSON document that a secret holds.
pub(crate) fn registry(value: &Value) -> RegistryCredentials {
    let (kind, inner) = value
        .as_object()
        .and_then(|members| members.iter().next())
        .map_or(("", &Value::Null), |(kind, inner)| (kind.as_str(), inner));
    let text = |member: &str| {
        inner
            .get(member)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (host, username, password) = match kind {
        "docker_hub_registry" => ("docker.io".to_owned(), text("username"), text("password")),
        "digital_ocean_registry" => (
            "registry.digitalocean.com".to_owned(),
            text("username"),
            text("password"),
        ),
        "github_registry" => ("ghcr.io".to_owned(), text("username"), text("password")),
        "gitlab_registry" => (
            "registry.gitlab.com".to_owned(),
            text("username"),
            text("password"),
        ),
        "azure_container_registry" => (
            format!("{}.azurecr.io", text("registry_name")),
            text("username"),
            text("password"),
        ),
        // Google's registries take the whole key file as the password of this user.
        "gcp_container_registry" => (text("url"), "_json_key".to_owned(), text("keyfile_content")),
        _ => (text("url"), text("username"), text("password")),
    };
    let host = host
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    RegistryCredentials {
        host,
        username,
        password,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::registry;

    #[test]
    fn each_registry_gives_its_login() {
        for (value, host, username) in [
            (
                json!({"docker_hub_registry":{"username":"u","password":"p"}}),
                "docker.io",
                "u",
            ),
            (
                json!({"private_registry":{"url":"https://r.example.org/","username":"u","password":"p"}}),
                "r.example.org",
                "u",
            ),
            (
                json!({"azure_container_registry":{"registry_name":"x","username":"u","password":"p"}}),
                "x.azurecr.io",
                "u",
            ),
            (
                json!({"gcp_container_registry":{"url":"gcr.io","keyfile_content":"p"}}),
                "gcr.io",
                "_json_key",
            ),
        ] {
            let found = registry(&value);
            assert_eq!((found.host.as_str(), found.username.as_str()), (host, username));
            assert_eq!(found.password, "p");
        }
    }
}
