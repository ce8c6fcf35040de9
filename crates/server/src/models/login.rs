//! The login of the hub or of a registry, out of an organization's secret: whoever pulls a model is the operator, who has the
//! keys of all secrets already; the running control plane opens one for them.

use anyhow::{Context, bail};
use axum::{Json, extract::State};
use hyper::Method;
use serde::{Deserialize, Serialize};
use tram_cli::SecretName;
use tram_model::source::Source;
use tram_site::RegistryCredentials;
use tram_store::{filter, filter::Page};
use tram_types::status::SecretType;

use crate::{
    admin::{self, Admin, Failure},
    door::{ask, body},
    paths::Paths,
};

/// Where at the door.
pub(super) const PATH: &str = "/models/login";
/// Names of organizations that a refusal tells.
const NAMES_TOLD: usize = 10;

/// Which secret, and who is to be shown it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wanted {
    secret: String,
    /// Needed where there are several.
    organization: Option<String>,
    /// The hub or the registry.
    host: String,
}

/// The login that a secret holds for the place that a model comes from.
///
/// # Errors
/// With what is wrong, for the user.
pub(super) async fn reveal(
    paths: &Paths,
    running: bool,
    name: SecretName,
    place: &Source,
    hub: &str,
) -> anyhow::Result<RegistryCredentials> {
    let host = host(place, hub)?;
    if !running {
        bail!("`--secret` needs the running control plane, which has the keys of secrets: start it first");
    }
    let wanted = Wanted {
        secret: name.secret,
        organization: name.organization,
        host,
    };
    ask(
        &paths.root().join(admin::SOCKET),
        Method::POST,
        PATH,
        body(&wanted)?,
    )
    .await
}

/// Who is to be shown a login.
fn host(place: &Source, hub: &str) -> anyhow::Result<String> {
    match place {
        Source::Hub { .. } => {
            let url: hyper::Uri = hub
                .parse()
                .with_context(|| format!("`{hub}` is no address of a hub"))?;
            let authority = url.scheme().and(url.authority()).map(ToString::to_string);
            authority.with_context(|| format!("`{hub}` is no address of a hub: give `https://HOST`"))
        }
        Source::Registry(reference) => {
            let reference: tram_image::Reference = reference.parse()?;
            Ok(reference.registry().to_owned())
        }
        Source::Web(url) => bail!(
            "`--secret` is for `hf://` and `oci://`: what else needs a login, such as {url}, is downloaded by hand and taken \
             in with `tram models import`"
        ),
    }
}

/// The door's side.
pub(super) async fn answer(
    State(admin): State<Admin>,
    Json(wanted): Json<Wanted>,
) -> Result<Json<RegistryCredentials>, Failure> {
    let organizations = filter::Organizations {
        name: wanted.organization.clone(),
        ..filter::Organizations::default()
    };
    let found = admin
        .store
        .list_organizations_unscoped(&organizations, Page::largest())
        .await?
        .items;
    let organization = match (found.as_slice(), &wanted.organization) {
        ([one], _) => one,
        ([], Some(name)) => return Err(Failure(format!("there is no organization `{name}`"))),
        ([], None) => return Err(Failure("there is no organization yet".to_owned())),
        (several, _) => {
            let names: Vec<&str> = several
                .iter()
                .take(NAMES_TOLD)
                .map(|one| one.name.as_str())
                .collect();
            return Err(Failure(format!(
                "say whose secret it is with `--organization`: there are {}",
                names.join(", ")
            )));
        }
    };
    let names = [wanted.secret.clone()];
    let mut secrets = admin
        .store
        .reveal_secrets_by_name(organization.id, None, &names)
        .await?;
    let name = &wanted.secret;
    let Some(found) = secrets.remove(name) else {
        return Err(Failure(format!(
            "organization `{}` has no secret `{name}` (those of a project are not looked at)",
            organization.name
        )));
    };
    if found.secret.kind != SecretType::Registry {
        return Err(Failure(format!(
            "secret `{name}` is not of type REGISTRY: choose one that is"
        )));
    }
    let login = tram_controller::registry_login(name, &found.value).map_err(Failure)?;
    // As with images: whoever names a place is not to get the login of another.
    if !login.is_for(&wanted.host) {
        return Err(Failure(format!(
            "secret `{name}` is a login of {}, and is not shown to {}",
            login.host, wanted.host
        )));
    }
    Ok(Json(login))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_for_the_hub_or_the_registry() {
        let host = |source: &str, hub: &str| host(&Source::parse(source).unwrap(), hub);
        let hub = "https://hub.example:8443/";
        assert_eq!(host("hf://a/b/c.gguf", hub).unwrap(), "hub.example:8443");
        assert!(host("hf://a/b/c.gguf", "nowhere").is_err());
        assert_eq!(
            host("oci://registry.example/a/b:1", hub).unwrap(),
            "registry.example"
        );
        let web = host("https://example.org/a.gguf", hub).unwrap_err().to_string();
        assert!(web.contains("`tram models import`"), "{web}");
    }
}
