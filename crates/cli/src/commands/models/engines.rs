//! `tram models engines`.

use serde_json::Value;

use crate::{
    error::Error,
    session::Session,
    view::{list, text},
};

pub(super) async fn run(session: &Session) -> Result<(), Error> {
    let reply = session.client()?.get("/v1/model_engines", &[]).await?;
    let engines = list(&reply, "engines").to_vec();
    let header = [
        "ENGINE",
        "STREAMS SURVIVE",
        "CALLERS APART",
        "ADAPTERS",
        "DRAFTS",
        "READY",
        "METRICS",
        "IMAGE",
    ];
    let yes = |engine: &Value, member: &str| if engine[member] == true { "yes" } else { "no" }.to_owned();
    session.printer.list(&engines, "engines", &header, |engine| {
        vec![
            text(engine, "name").to_owned(),
            yes(engine, "streams_survive"),
            yes(engine, "separates_callers"),
            yes(engine, "takes_adapters"),
            yes(engine, "takes_drafts"),
            text(engine, "ready_path").to_owned(),
            text(engine, "metrics_path").to_owned(),
            match text(engine, "image_example") {
                "" => "carried by the server".to_owned(),
                image => format!("such as {image}"),
            },
        ]
    })?;
    Ok(())
}
