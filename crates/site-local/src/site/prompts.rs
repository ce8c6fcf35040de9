//! What replicas of a model have computed of prompts: a file for each, which the next start of the same replica finds.
//!
//! The file is lent to the instance for writing, so the one thing to know is what bounds it: it is one file, shown alone,
//! and the instance may write none that is longer ([`tram_sandbox::protocol::Limits::file_bytes`]). It goes with the
//! deployment. What is in it is the program's affair, which checks it.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::PathBuf;

use tram_sandbox::protocol::{BindMount, LaunchSpec, User};
use tram_site::InstanceSpec;
use tram_site::spec::{KEPT_BYTES_VARIABLE, KEPT_PATH, KEPT_VARIABLE};

use super::Shared;
use crate::record::{DIRECTORY_MODE, FILE_MODE, Store};

/// What the file has beside what was computed: tokens, and where what is.
const INDEX_BYTES: u64 = 64 << 20;

impl Shared {
    /// Shows an instance the file of its replica, where its program wants one and it may have one.
    pub(super) fn keep_prompts(&self, spec: &InstanceSpec, user: &User, launch: &mut LaunchSpec) {
        let Some(bytes) = self.config.kept_prompts_bytes.filter(|_| spec.image.keeps) else {
            return;
        };
        // gVisor's kernel is nobody to the machine, and may write no file of it.
        if launch.gvisor.is_some() {
            return;
        }
        let source = match file(&self.store, spec, user) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(instance = %spec.id, %error, "what it computes of prompts is not kept");
                return;
            }
        };
        launch.binds.push(BindMount {
            source,
            target: KEPT_PATH.into(),
            readonly: false,
        });
        // Not by words, which an engine that an operator built of an earlier version would refuse.
        for (name, value) in [
            (KEPT_VARIABLE, KEPT_PATH),
            (KEPT_BYTES_VARIABLE, &bytes.to_string()),
        ] {
            if !launch.env.iter().any(|(given, _)| given == name) {
                launch.env.push((name.to_owned(), value.to_owned()));
            }
        }
        launch.limits.file_bytes = Some(bytes.saturating_add(INDEX_BYTES));
    }
}

/// The file of a replica, which its user may write.
fn file(store: &Store, spec: &InstanceSpec, user: &User) -> io::Result<PathBuf> {
    let directory = store.prompts_path(spec.deployment_id);
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(&directory)?;
    let path = directory.join(spec.replica_index.to_string());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(FILE_MODE)
        .open(&path)?;
    fchown(&file, Some(user.uid), Some(user.gid))?;
    Ok(path)
}
