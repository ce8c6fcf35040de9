//! `tram pause SERVICE`.

use serde_json::json;

use super::services::Target;
use crate::{error::Error, resolve, session::Session, view::acted};

pub(crate) async fn run(session: Session, target: Target) -> Result<(), Error> {
    let client = session.client()?;
    let service = resolve::service(&client, &target.service).await?;
    client
        .post(&format!("/v1/services/{}/pause", service.id), &json!({}))
        .await?;
    session.printer.done(
        &acted("pause", &service.id, &service.name),
        format_args!(
            "pausing service `{path}`; start it again with `tram resume {path}`",
            path = service.path()
        ),
    )
}
