//! `tram models list` and `tram models show`.

use serde_json::Value;

use crate::{
    client::Client,
    error::Error,
    session::Session,
    suggest,
    view::{number, take, text},
};

/// Arguments of `models show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The model
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Every model of the server.
pub(super) async fn all(client: &Client) -> Result<Vec<Value>, Error> {
    let mut reply = client.get("/v1/stored_models", &[]).await?;
    match take(&mut reply, "models") {
        Value::Array(models) => Ok(models),
        _ => Ok(Vec::new()),
    }
}

/// The model with this name, digest or origin.
pub(super) async fn find(client: &Client, source: &str) -> Result<Value, Error> {
    let models = all(client).await?;
    let is_meant = |model: &&Value| {
        ["name", "digest", "origin"]
            .iter()
            .any(|member| text(model, member) == source)
    };
    if let Some(model) = models.iter().find(is_meant) {
        return Ok(model.clone());
    }
    let names = models.iter().map(|model| text(model, "name"));
    Err(Error::NotFound {
        kind: "model",
        name: source.to_owned(),
        near: suggest::nearest(source, names).map(str::to_owned),
        list: "tram models list",
    })
}

pub(super) async fn run(session: &Session) -> Result<(), Error> {
    let models = all(&session.client()?).await?;
    let header = ["MODEL", "PARAMETERS", "QUANTIZATION", "CONTEXT", "SIZE", "NEEDS"];
    session.printer.list(&models, "models", &header, |model| {
        vec![
            text(model, "name").to_owned(),
            parameters(number(model, "parameters")),
            text(model, "quantization").to_owned(),
            number(model, "context_length").to_string(),
            mebibytes(number(model, "size_bytes")),
            mebibytes(number(model, "needed_bytes")),
        ]
    })?;
    Ok(())
}

pub(super) async fn show(session: &Session, arguments: &Show) -> Result<(), Error> {
    let model = find(&session.client()?, &arguments.name).await?;
    session.printer.value(&model, || {
        let rows = [
            ("model", text(&model, "name").to_owned()),
            ("title", text(&model, "title").to_owned()),
            ("digest", text(&model, "digest").to_owned()),
            ("origin", text(&model, "origin").to_owned()),
            ("architecture", text(&model, "architecture").to_owned()),
            ("parameters", parameters(number(&model, "parameters"))),
            ("quantization", text(&model, "quantization").to_owned()),
            ("context", format!("{} tokens", number(&model, "context_length"))),
            ("file", mebibytes(number(&model, "size_bytes"))),
            ("memory needed", mebibytes(number(&model, "needed_bytes"))),
        ];
        let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
        crate::printer::columns(None, rows.map(|(name, value)| vec![name.to_owned(), value]))
    })?;
    Ok(())
}

/// Bytes in a mebibyte.
const MIB: i64 = 1024 * 1024;

pub(super) fn mebibytes(bytes: i64) -> String {
    format!("{} MiB", bytes.unsigned_abs().div_ceil(MIB.unsigned_abs()))
}

/// Such as `135M` or `7.2B`.
pub(super) fn parameters(count: i64) -> String {
    const MILLION: i64 = 1_000_000;
    const BILLION: i64 = 1000 * MILLION;
    match count {
        BILLION.. => format!("{}.{}B", count / BILLION, count % BILLION / (BILLION / 10)),
        MILLION.. => format!("{}M", count / MILLION),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(parameters(134_515_008), "134M");
        assert_eq!(parameters(7_248_000_000), "7.2B");
        assert_eq!(parameters(68), "68");
        assert_eq!(mebibytes(MIB + 1), "2 MiB");
    }
}
