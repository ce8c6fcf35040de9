//! Registry secrets: from the member of the contract's `oneof` to who may come in where.

use serde::Deserialize;
use tram_site::RegistryCredentials;

/// How Google's registries call a user that logs in with a key file.
const GCP_KEY_USER: &str = "_json_key";

#[derive(Deserialize)]
enum Kept {
    #[serde(rename = "docker_hub_registry")]
    DockerHub(Login),
    #[serde(rename = "private_registry")]
    Private(Login),
    #[serde(rename = "digital_ocean_registry")]
    DigitalOcean(Login),
    #[serde(rename = "github_registry")]
    Github(Login),
    #[serde(rename = "gitlab_registry")]
    Gitlab(Login),
    #[serde(rename = "gcp_container_registry")]
    Gcp(KeyFile),
    #[serde(rename = "azure_container_registry")]
    Azure(Login),
}

#[derive(Deserialize)]
struct Login {
    username: String,
    password: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    registry_name: String,
}

#[derive(Deserialize)]
struct KeyFile {
    keyfile_content: String,
    #[serde(default)]
    url: String,
}

/// The login that a secret of a registry holds.
///
/// # Errors
/// With what is wrong, for the user.
pub fn registry_login(name: &str, kept: &[u8]) -> Result<RegistryCredentials, String> {
    let kept: Kept = serde_json::from_slice(kept)
        .map_err(|_| format!("secret `{name}` holds no registry that is known: store it anew"))?;
    let login = |login: Login, host: String| RegistryCredentials {
        host,
        username: login.username,
        password: login.password,
    };
    Ok(match kept {
        Kept::DockerHub(it) => login(it, "docker.io".to_owned()),
        Kept::DigitalOcean(it) => login(it, "registry.digitalocean.com".to_owned()),
        Kept::Github(it) => login(it, "ghcr.io".to_owned()),
        Kept::Gitlab(it) => login(it, "registry.gitlab.com".to_owned()),
        Kept::Private(it) => {
            let host = host_of(&it.url);
            login(it, host)
        }
        Kept::Azure(it) => {
            let host = format!("{}.azurecr.io", it.registry_name);
            login(it, host)
        }
        Kept::Gcp(it) => RegistryCredentials {
            host: host_of(&it.url),
            username: GCP_KEY_USER.to_owned(),
            password: it.keyfile_content,
        },
    })
}

/// The host of what users write: with or without a scheme, with or without a path.
fn host_of(url: &str) -> String {
    let bare = url.split_once("://").map_or(url, |(_, rest)| rest);
    bare.split('/').next().unwrap_or(bare).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_registry_gets_its_host() {
        let host = |json: &str| registry_login("s", json.as_bytes()).unwrap().host;
        assert_eq!(
            host(
                r#"{"private_registry":{"username":"u","password":"p","url":"https://Registry.example:5000/v2/"}}"#
            ),
            "registry.example:5000"
        );
        assert_eq!(
            host(r#"{"github_registry":{"username":"u","password":"p"}}"#),
            "ghcr.io"
        );
        assert_eq!(
            host(r#"{"azure_container_registry":{"registry_name":"acme","username":"u","password":"p"}}"#),
            "acme.azurecr.io"
        );
        let google = registry_login(
            "s",
            br#"{"gcp_container_registry":{"keyfile_content":"{}","url":"eu.gcr.io/project"}}"#,
        )
        .unwrap();
        assert_eq!(
            (google.host.as_str(), google.username.as_str()),
            ("eu.gcr.io", "_json_key")
        );
        assert!(registry_login("s", br#"{"value":"x"}"#).is_err());
    }
}
