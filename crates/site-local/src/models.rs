//! Models: found once, pinned for a deployment, and shown to its instances.
//!
//! As with images, a name is looked up once for each deployment; from then on the deployment serves the file that the
//! name stood for at that time. The pin is a part of the image's, and goes with it.

use std::io;
use std::path::{Path, PathBuf};

use tram_model::Digest;
use tram_sandbox::protocol::BindMount;
use tram_site::{
    ImageSpec,
    spec::{DRAFT_PATH, MODEL_PATH, adapter_path},
};

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
        let gone = |source: &str| lasting(format!("the file of model `{source}` is gone from this machine"));
        match &pinned.model {
            Some(known) if models.path(known).exists() => {}
            Some(_) => return Err(gone(source)),
            None => {
                let held = models.hold(source, |model| {
                    pinned.model = Some(model.digest.clone());
                    self.records.pin_image(spec.deployment, &pinned)
                });
                held.map_err(not_held)?;
            }
        }
        for (index, adapter) in spec.adapters.iter().enumerate() {
            match pinned.adapters.get(index) {
                Some(known) if models.path(known).exists() => continue,
                Some(_) => return Err(gone(&adapter.source)),
                None => {}
            }
            let held = models.hold(&adapter.source, |model| {
                pinned.adapters.push(model.digest.clone());
                self.records.pin_image(spec.deployment, &pinned)
            });
            held.map_err(not_held)?;
        }
        if let Some(draft) = &spec.draft {
            match &pinned.draft {
                Some(known) if models.path(known).exists() => {}
                Some(_) => return Err(gone(draft)),
                None => {
                    let held = models.hold(draft, |model| {
                        pinned.draft = Some(model.digest.clone());
                        self.records.pin_image(spec.deployment, &pinned)
                    });
                    held.map_err(not_held)?;
                }
            }
        }
        Ok(())
    }

    /// The memory that an instance takes to serve its model, its adapters and its draft with so many tokens of context;
    /// `None`: the store does not have the model. What a deployment serves already is asked for by its digest.
    pub(crate) fn model_memory_bytes(&self, spec: &ImageSpec, context_length: u64) -> Option<u64> {
        let models = self.models.as_ref()?;
        let pinned = self.records.pinned_image(spec.deployment);
        let file = |digest: Option<&Digest>, name: Option<&str>| {
            let found = digest.and_then(|digest| models.find(&digest.to_string()));
            found.or_else(|| models.find(name?))
        };
        let by_digest = pinned.as_ref().and_then(|pinned| pinned.model.as_ref());
        let model = file(by_digest, spec.model.as_deref())?;
        let adapters = spec.adapters.iter().filter_map(|it| models.find(&it.source));
        let mut needed = tram_model::memory::needed_bytes(&model, context_length);
        let by_digest = pinned.as_ref().and_then(|pinned| pinned.draft.as_ref());
        if let Some(draft) = file(by_digest, spec.draft.as_deref()) {
            let draft_bytes = tram_model::memory::draft_bytes(&draft, &model.gguf, context_length);
            needed = needed.saturating_add(draft_bytes);
        }
        Some(adapters.fold(needed, |sum, adapter| sum.saturating_add(adapter.size_bytes)))
    }

    /// The mounts that show an instance its model, its adapters and its draft. The error is for the user.
    pub(crate) fn model_mounts(&self, spec: &ImageSpec) -> Result<Vec<BindMount>, String> {
        let Some(source) = &spec.model else {
            return Ok(Vec::new());
        };
        let missing = |source: &str| format!("the model {source} is not on this machine yet");
        let pinned = self.records.pinned_image(spec.deployment);
        let (Some(pinned), Some(models)) = (pinned, &self.models) else {
            return Err(missing(source));
        };
        let model = pinned.model.as_ref().ok_or_else(|| missing(source))?;
        let mut mounts = vec![mount(models.path(model), MODEL_PATH.into())];
        for (index, adapter) in spec.adapters.iter().enumerate() {
            let file = pinned
                .adapters
                .get(index)
                .ok_or_else(|| missing(&adapter.source))?;
            mounts.push(mount(models.path(file), adapter_path(&adapter.name).into()));
        }
        if let Some(draft) = &spec.draft {
            let file = pinned.draft.as_ref().ok_or_else(|| missing(draft))?;
            mounts.push(mount(models.path(file), DRAFT_PATH.into()));
        }
        Ok(mounts)
    }
}

fn not_held(error: tram_model::Error) -> Trouble {
    match error {
        tram_model::Error::Io { .. } => Trouble {
            message: format!("the machine cannot hold a model: {}", crate::chain(&error)),
            retryable: true,
        },
        _ => lasting(error.to_string()),
    }
}

fn mount(source: PathBuf, target: PathBuf) -> BindMount {
    BindMount {
        source,
        target,
        readonly: true,
    }
}

/// How many deployments a site keeps a model for.
pub(crate) fn uses(records: &Store, model: &Digest) -> io::Result<usize> {
    let pinned = records.pinned_images()?;
    Ok(pinned.values().filter(|pinned| pinned.uses(model)).count())
}

/// As [`crate::LocalSite::model_uses`], for a site that is not open.
///
/// # Errors
/// When its records cannot be read.
pub fn model_uses_at(state_dir: &Path, model: &Digest) -> io::Result<usize> {
    Store::look(state_dir).map_or(Ok(0), |records| uses(&records, model))
}
