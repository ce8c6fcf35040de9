//! Where the site reads the values of secrets that are bound to hosts: in the store, one at a time, when a request needs
//! it. Nothing is kept.

use async_trait::async_trait;
use tram_site::Error;
use tram_site::secrets::{BoundValue, SecretValues};
use tram_store::Store;
use tram_types::{OrganizationId, SecretId};

/// Values out of the store.
#[derive(Debug)]
pub(crate) struct StoreValues(pub(crate) Store);

/// How the API keeps a simple secret.
#[derive(serde::Deserialize)]
struct Kept {
    value: Option<String>,
}

#[async_trait]
impl SecretValues for StoreValues {
    async fn bound_value(
        &self,
        organization: OrganizationId,
        secret: SecretId,
    ) -> Result<Option<BoundValue>, Error> {
        const DOING: &str = "cannot read a bound secret";
        let found = match self.0.reveal_secret(organization, secret).await {
            Ok(found) => found,
            Err(tram_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(Error::unavailable(DOING, error)),
        };
        // The text of the error would hold a part of the value.
        let kept: Kept = serde_json::from_slice(&found.value)
            .map_err(|_| Error::unavailable(DOING, "it is not kept as this version keeps secrets"))?;
        Ok(kept.value.map(|value| BoundValue {
            value,
            hosts: found.hosts,
        }))
    }
}
