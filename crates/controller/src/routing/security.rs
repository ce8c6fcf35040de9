//! Who may use a route: passwords and keys, resolved and hashed as the data plane compares them.
//!
//! Salts come from the secret itself and a key that lives as long as this process, so that the same policy gives the
//! same entry every time it is read and a table does not change for nothing.

use sha2::{Digest, Sha256};
use tram_store::{RoutedService, Store};
use tram_types::{
    definition::{DeploymentDefinition, SecurityPolicies},
    interpolate,
    routing::{BasicAuth, SecretHash, Security},
};
use uuid::Uuid;

use crate::{
    error::Error,
    spec::{Secrets, secrets_in},
};

/// Length of a salt, in bytes.
const SALT_BYTES: usize = 16;

/// Hashes secrets with salts of this process.
#[derive(Debug)]
pub(super) struct Hasher {
    key: Uuid,
}

impl Hasher {
    pub(super) fn new() -> Self {
        Self { key: Uuid::new_v4() }
    }

    /// The hash of a secret that nobody knows: an entry that cannot be read must not open the route, which an entry
    /// left out might.
    fn nobody(&self, service: Uuid) -> SecretHash {
        self.hash(service, &self.key.to_string())
    }

    fn hash(&self, service: Uuid, secret: &str) -> SecretHash {
        let mut seed = Sha256::new();
        seed.update(self.key.as_bytes());
        seed.update(service.as_bytes());
        seed.update(secret.as_bytes());
        let seed = seed.finalize();
        let salt = &seed[..SALT_BYTES];
        let mut hasher = Sha256::new();
        hasher.update(salt);
        hasher.update(secret.as_bytes());
        SecretHash {
            salt: hex::encode(salt),
            sha256: hex::encode(hasher.finalize()),
        }
    }
}

/// The secrets that a service's policies name.
pub(super) async fn secrets(
    service: &RoutedService,
    definition: &DeploymentDefinition,
    store: &Store,
) -> Result<Secrets, Error> {
    let policies = definition
        .routes
        .iter()
        .filter_map(|route| route.security_policies.as_ref());
    let names: Vec<String> = policies
        .flat_map(|policy| {
            let passwords = policy
                .basic_auths
                .iter()
                .flat_map(|basic| secrets_in(&basic.password));
            let keys = policy.api_keys.iter().flat_map(|key| secrets_in(key));
            passwords.chain(keys).collect::<Vec<_>>()
        })
        .collect();
    Secrets::read(store, service.organization_id, service.project_id, &names).await
}

/// What a policy comes to. An entry whose secret is gone lets nobody in.
pub(super) fn security(
    service: &RoutedService,
    policy: Option<&SecurityPolicies>,
    secrets: &Secrets,
    hasher: &Hasher,
) -> Security {
    let Some(policy) = policy else {
        return Security::default();
    };
    let id = service.id.uuid();
    let expand = |template: &str| interpolate::expand(template, |name| secrets.text(name), |_| None);
    let guard = |template: &str| match expand(template) {
        Ok(secret) => hasher.hash(id, &secret),
        Err(problem) => {
            tracing::warn!(service = %service.id, %problem, "a route lets nobody in");
            hasher.nobody(id)
        }
    };
    Security {
        basic_auths: policy
            .basic_auths
            .iter()
            .map(|basic| BasicAuth {
                username: basic.username.clone(),
                password: guard(&basic.password),
            })
            .collect(),
        api_keys: policy.api_keys.iter().map(|key| guard(key)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_secret_of_the_same_service_has_the_same_hash() {
        let hasher = Hasher::new();
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let hash = hasher.hash(one, "correct horse");
        assert_eq!(hash, hasher.hash(one, "correct horse"));
        assert_ne!(hash.sha256, hasher.hash(other, "correct horse").sha256);
        let mut expected = Sha256::new();
        expected.update(hex::decode(&hash.salt).unwrap());
        expected.update(b"correct horse");
        assert_eq!(hash.sha256, hex::encode(expected.finalize()));
    }
}
