//! `tram models catalog`: well-known models, and what one needs to know before fetching one.

use serde_json::Value;

use super::list::{mebibytes, parameters};
use crate::{
    error::Error,
    session::Session,
    view::{number, take, text},
};

pub(super) async fn run(session: &Session) -> Result<(), Error> {
    let mut reply = session.client()?.get("/v1/model_catalog", &[]).await?;
    let models = match take(&mut reply, "models") {
        Value::Array(models) => models,
        _ => Vec::new(),
    };
    let header = [
        "MODEL",
        "MAKER",
        "FOR",
        "PARAMETERS",
        "CONTEXT",
        "SIZE",
        "NEEDS",
        "LICENCE",
        "HERE",
    ];
    session.printer.list(&models, "models", &header, |model| {
        vec![
            text(model, "name").to_owned(),
            text(model, "maker").to_owned(),
            text(model, "purpose").to_owned(),
            parameters(number(model, "parameters")),
            number(model, "context_length").to_string(),
            mebibytes(number(model, "size_bytes")),
            mebibytes(number(model, "needed_bytes")),
            text(model, "licence").to_owned(),
            if model["is_stored"] == true { "yes" } else { "" }.to_owned(),
        ]
    })?;
    Ok(())
}
