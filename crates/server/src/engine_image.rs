//! The platform's own engine of models, as an image in the store of images.
//!
//! To a site an engine is an image like any other: pinned, counted, isolated. It has one name, [`ENGINE_IMAGE`], by
//! which the controller asks for it, and stays whatever else is collected.

use tram_controller::ENGINE_IMAGE;
use tram_image::{Digest, Error, ImageStore, Reference};

/// The engine's image, if there is one: it must stay, for a model that is deployed tomorrow finds no registry that has
/// it.
///
/// # Errors
/// When the store cannot be read.
pub async fn kept(images: &ImageStore) -> Result<Option<Digest>, Error> {
    let reference: Reference = ENGINE_IMAGE.parse()?;
    Ok(images.held(&reference).await?.map(|image| image.manifest_digest))
}
