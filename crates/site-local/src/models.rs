//! Models: found once, pinned for a deployment, and shown to its instances.
//!
//! As with images, a name is looked up once for each deployment; from then on the deployment serves the file that the
//! name stood for at that time. The pin is a part of the image's, and goes with it.

use std::io;
use std::path::{Path, PathBuf};

use tram_model::Digest;
use tram_sandbox::protocol::BindMount;
use tram_site::{ImageSpec, spec::MODEL_PATH};

use crate::images::Images;
use crate::record::Store;

/// Why a model cannot be served; for the user.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) message: String,
    /// Whether trying again can help.
    pub(crate) retryable: bool,
}

fn lasting(message: impl Into<String>) -> Trouble {
    Trouble {
        message: message.into(),
        retryable: false,
    }
}

impl Images {
    /// Writes down which file the deployment's model is. Nothing to do where there is no model, or it is known already.
    /// The image must have been pinned before.
    pub(crate) fn hold_model(&self, spec: &ImageSpec) -> Result<(), Trouble> {
        let Some(source) = &spec.model else {
            return Ok(());
        };
        let models = self
            .models
            .as_ref()
            .ok_or_else(|| lasting("this machine serves no models"))?;
        let Some(mut pinned) = self.records.pinned_image(spec.deployment) else {
            return Err(Trouble {
                message: "the machine cannot write down which engine a deployment runs".to_owned(),
                retryable: true,
            });
        };
        if let Some(known) = &pinned.model {
            if models.path(known).exists() {
                return Ok(());
            }
            return Err(lasting(format!(
                "the file of model `{source}` is gone from this machine"
            )));
        }
        let held = models.hold(source, |model| {
            pinned.model = Some(model.digest.clone());
            self.records.pin_image(spec.deployment, &pinned)
        });
        match held {
            Ok(_) => Ok(()),
            Err(error @ tram_model::Error::Io { .. }) => Err(Trouble {
                message: format!("the machine cannot hold a model: {}", crate::chain(&error)),
                retryable: true,
            }),
            Err(error) => Err(lasting(error.to_string())),
        }
    }

    /// The mount that shows an instance its model. The error is for the user.
    pub(crate) fn model_mount(&self, spec: &ImageSpec) -> Result<Option<BindMount>, String> {
        let Some(source) = &spec.model else {
            return Ok(None);
        };
        let pinned = self.records.pinned_image(spec.deployment);
        let file = pinned
            .and_then(|pinned| pinned.model)
            .zip(self.models.as_ref())
            .map(|(digest, models)| models.path(&digest));
        match file {
            Some(source) => Ok(Some(mount(source))),
            None => Err(format!("the model {source} is not on this machine yet")),
        }
    }
}

fn mount(source: PathBuf) -> BindMount {
    BindMount {
        source,
        target: MODEL_PATH.into(),
        readonly: true,
    }
}

/// How many deployments a site keeps a model for.
pub(crate) fn uses(records: &Store, model: &Digest) -> io::Result<usize> {
    let pinned = records.pinned_images()?;
    Ok(pinned
        .values()
        .filter(|pinned| pinned.model.as_ref() == Some(model))
        .count())
}

/// As [`crate::LocalSite::model_uses`], for a site that is not open.
///
/// # Errors
/// When its records cannot be read.
pub fn model_uses_at(state_dir: &Path, model: &Digest) -> io::Result<usize> {
    Store::look(state_dir).map_or(Ok(0), |records| uses(&records, model))
}
