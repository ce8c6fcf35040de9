//! Whether an image can be had, and whether a domain leads here: other rooms' answers in the API's words.
//!
//! A login goes to the registry it is for and nowhere else, as with pulls: for any other, it is left out.

use async_trait::async_trait;
use tram_api::{
    DomainChecker, DomainVerdict, ImageVerdict, ImageVerifier, wire::helper::VerifyDockerImageReplyErrCode,
};
use tram_controller::domain::{Checker, Verdict};
use tram_image::{Credentials, ImageStore, Reference};
use tram_site::RegistryCredentials;
use tram_store::record::Domain;

/// Asks registries through the image store.
#[derive(Debug)]
pub struct Verifier {
    /// The image store.
    pub images: ImageStore,
}

#[async_trait]
impl ImageVerifier for Verifier {
    async fn verify(&self, image: &str, credentials: Option<RegistryCredentials>) -> ImageVerdict {
        let credentials = login(image, credentials);
        let found = self.images.verify(image, credentials.as_ref()).await;
        match found.code {
            None => ImageVerdict::Good,
            Some(code) => ImageVerdict::Bad {
                // Both lists are the wire contract's.
                code: code
                    .as_str()
                    .parse()
                    .unwrap_or(VerifyDockerImageReplyErrCode::Generic),
                reason: found.reason,
            },
        }
    }
}

/// Asks the controller's own check.
#[derive(Debug)]
pub struct Domains(pub Checker);

#[async_trait]
impl DomainChecker for Domains {
    async fn check(&self, domain: &Domain) -> Result<DomainVerdict, tram_store::Error> {
        Ok(match self.0.check(domain).await? {
            Verdict::Here | Verdict::Elsewhere => DomainVerdict::Recorded,
            Verdict::Unknown => DomainVerdict::Unanswered,
        })
    }
}

/// What the registry of `image` may be shown of `given`.
fn login(image: &str, given: Option<RegistryCredentials>) -> Option<Credentials> {
    let reference: Reference = image.parse().ok()?;
    given
        .filter(|given| given.is_for(reference.registry()))
        .map(|given| Credentials::basic(given.username, given.password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_goes_to_its_own_registry_alone() {
        let shown = |image: &str, host: &str| {
            let given = RegistryCredentials {
                host: host.to_owned(),
                username: "u".to_owned(),
                password: "p".to_owned(),
            };
            login(image, Some(given)).is_some()
        };
        assert!(shown("r.example.org/app", "r.example.org"));
        assert!(shown("app", "docker.io"));
        for (image, host) in [
            ("evil.example.com/app", "r.example.org"),
            ("app", "r.example.org"),
            ("evil.example.com/app", ""),
            ("https://r.example.org/app", "r.example.org"),
        ] {
            assert!(!shown(image, host), "{image} {host}");
        }
        assert!(login("app", None).is_none());
    }
}
