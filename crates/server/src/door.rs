//! Questions to the running control plane, through the operator's door ([`crate::admin`]).

use std::path::Path;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::{Method, Request, body::Bytes};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// What a question carries.
pub type AnyBody = BoxBody<Bytes, std::io::Error>;

/// Nothing.
#[must_use]
pub fn empty() -> AnyBody {
    http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed()
}

/// One question to the control plane's door.
///
/// # Errors
/// When it cannot be reached, or with its refusal.
pub async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: AnyBody,
) -> anyhow::Result<T> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("cannot reach the running control plane at {}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(body)?;
    let reply = sender
        .send_request(request)
        .await
        .context("the control plane did not answer")?;
    let status = reply.status();
    let bytes = reply.into_body().collect().await?.to_bytes();
    connection.abort();
    if !status.is_success() {
        let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        bail!(
            "{}",
            said["message"]
                .as_str()
                .unwrap_or("the control plane refused without a reason")
        );
    }
    Ok(serde_json::from_slice(&bytes)?)
}
