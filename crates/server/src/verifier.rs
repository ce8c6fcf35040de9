//! Whether an image can be had: the image room's answer in the API's words.

use async_trait::async_trait;
use tram_api::{ImageVerdict, ImageVerifier, wire::helper::VerifyDockerImageReplyErrCode};
use tram_image::{Credentials, ImageStore};
use tram_site::RegistryCredentials;

/// Asks registries through the image store.
#[derive(Debug)]
pub struct Verifier {
    /// The image store.
    pub images: ImageStore,
}

#[async_trait]
impl ImageVerifier for Verifier {
    async fn verify(&self, image: &str, credentials: Option<RegistryCredentials>) -> ImageVerdict {
        let credentials = credentials.map(|given| Credentials::basic(given.username, given.password));
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
