//! `tram redeploy SERVICE`: the newest definition once more, with the image pulled anew.

use serde_json::json;

use super::deploy::wait;
use crate::{
    EXIT_SUCCESS,
    error::Error,
    resolve,
    session::Session,
    view::{take, text},
};

/// Arguments of `redeploy`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Its name, app/name, its id, or at least eight characters of its id
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// How to wait.
    #[command(flatten)]
    pub waiting: wait::Waiting,
}

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<u8, Error> {
    let client = session.client()?;
    let service = resolve::service(&client, &arguments.service).await?;
    let mut reply = client
        .post(&format!("/v1/services/{}/redeploy", service.id), &json!({}))
        .await?;
    let deployment = take(&mut reply, "deployment");
    let id = text(&deployment, "id").to_owned();
    session
        .printer
        .note(format_args!("redeploying service `{}`", service.path()));
    if arguments.waiting.no_wait || id.is_empty() {
        session.printer.value(&deployment, || id.clone())?;
        return Ok(EXIT_SUCCESS);
    }
    wait::until_healthy(
        &session,
        &client,
        &service,
        &id,
        wait::Before::Same,
        arguments.waiting.timeout,
    )
    .await
}
