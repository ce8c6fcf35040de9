//! `tram admin`: what the operator asks of the running control plane, through its door.

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::json;
use tram_cli::{AdminAction, Printer, Settings};

use crate::{
    admin::{self, Backup, NewToken, RotatedKeys},
    bootstrap,
    door::{ask, body, empty},
    invoker,
    paths::Paths,
};

/// Carries out one of the operator's commands.
///
/// # Errors
/// With what is wrong, for the user.
pub async fn run(settings: &Settings, action: AdminAction, printer: &Printer) -> anyhow::Result<()> {
    let paths = Paths::new(&settings.data_dir);
    if crate::processes::DirectoryLock::holder(paths.root(), crate::up::LOCK_NAME).is_none() {
        bail!(
            "no control plane runs on {}: start `tram up` first, or name its place with `--data-dir`",
            paths.root().display()
        );
    }
    let socket = paths.root().join(admin::SOCKET);
    match action {
        AdminAction::NewToken => {
            let made: NewToken = ask(&socket, Method::POST, "/tokens", empty()).await?;
            let kept =
                invoker::context_file().and_then(|file| bootstrap::keep(&file, &made.api_url, &made.token));
            let context = kept.as_ref().ok().map(|kept| kept.context.clone());
            let value = json!({ "token": made.token, "url": made.api_url, "context": context });
            printer.value(&value, || made.token.clone())?;
            match kept {
                Ok(kept) => printer.note(format_args!(
                    "the token is shown this once; it is kept as context `{}` in {}, which is now the current one",
                    kept.context,
                    kept.file.display()
                )),
                Err(error) => printer.note(format_args!(
                    "the token is shown this once; it could not be kept as a context: {}",
                    crate::chain(&error)
                )),
            }
        }
        AdminAction::RotateKeys => {
            let rotated: RotatedKeys = ask(&socket, Method::POST, "/keys/rotate", empty()).await?;
            let value = json!(rotated);
            printer.value(&value, || {
                format!(
                    "{} secrets are now under the key {}",
                    rotated.secrets, rotated.key_id
                )
            })?;
            printer.note(format_args!(
                "copy {} to a safe place, apart from the database",
                paths.keyring().display()
            ));
        }
        AdminAction::Backup { file } => {
            let file =
                std::path::absolute(&file).with_context(|| format!("cannot write {}", file.display()))?;
            let body = body(&Backup { file })?;
            let written: Backup = ask(&socket, Method::POST, "/backup", body).await?;
            let value = json!(written);
            printer.value(&value, || written.file.display().to_string())?;
            printer.note(format_args!(
                "the keys of the secrets are not in it: keep a copy of {} elsewhere",
                paths.keyring().display()
            ));
        }
    }
    Ok(())
}
