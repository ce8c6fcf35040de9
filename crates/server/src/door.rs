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

/// Something as JSON.
///
/// # Errors
/// When it cannot be written so.
pub fn body(value: &impl serde::Serialize) -> anyhow::Result<AnyBody> {
    let bytes = Bytes::from(serde_json::to_vec(value)?);
    Ok(http_body_util::Full::new(bytes)
        .map_err(|never| match never {})
        .boxed())
}

/// What the control plane says instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of refusal, for programs.
    pub code: String,
    /// Why, for the user.
    pub message: String,
}

/// One question to the control plane's door.
///
/// # Errors
/// When it cannot be reached, or with its [`Refusal`].
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
        let word = |name: &str| said[name].as_str().map(str::to_owned);
        bail!(Refusal {
            code: word("code").unwrap_or_default(),
            message: word("message")
                .unwrap_or_else(|| "the control plane refused without a reason".to_owned()),
        });
    }
    Ok(serde_json::from_slice(&bytes)?)
}
