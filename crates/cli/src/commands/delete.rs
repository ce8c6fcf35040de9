//! `tram delete SERVICE`. An app that `tram deploy` made goes with its last service; the server sees to that.

use super::services::Target;
use crate::{error::Error, resolve, session::Session, view::acted};

pub(crate) async fn run(session: Session, target: Target) -> Result<(), Error> {
    let client = session.client()?;
    let service = resolve::service(&client, &target.service).await?;
    client.delete(&format!("/v1/services/{}", service.id)).await?;
    session.printer.done(
        &acted("delete", &service.id, &service.name),
        format_args!("deleting service `{}`", service.path()),
    )
}
