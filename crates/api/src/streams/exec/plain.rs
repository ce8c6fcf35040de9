//! A command whose request asks for no upgrade: run without a terminal, and told in one answer when it has ended.
//!
//! The official SDK calls the endpoint so. Nothing more can be sent once the request is in, so the command's input
//! ends after what the request has. Time and output have limits, since an answer is made in memory and a connection
//! may not wait for ever; beyond them the command is ended and the caller told to use a WebSocket.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::time::timeout;
use tram_site::{
    ExecSession,
    streams::{ExecInput, ExecOutput},
};

use super::{Frame, FrameBody, FrameInput, Target, start};
use crate::{
    auth::{Access, Caller},
    error::Error,
    state::ApiState,
    wire::stream::{ExecCommandIo, ExecCommandReply, StreamResultOfExecCommandReply},
};

/// Longest that a command may run: what proxies and HTTP clients between wait for an answer at most.
const TIME_MAX: Duration = Duration::from_secs(300);
/// Most output, both streams together: what one answer may cost in memory, a third more once it is base64.
const OUTPUT_MAX_BYTES: usize = 8 * 1024 * 1024;

pub(super) async fn exec(api: &ApiState, caller: &Caller, target: Target) -> Result<Response, Error> {
    let data = target.stdin_data.as_deref().map(sent_bytes);
    let frame = Frame {
        body: Some(FrameBody {
            command: Some(target.command.clone()),
            disable_tty: Some(true),
            stdin: Some(FrameInput {
                data,
                close: Some(true),
            }),
            ..FrameBody::default()
        }),
        ..Frame::default()
    };
    let (session, input, _in_use) = start(api, caller, &target, frame).await?;
    let collected = async {
        tokio::select! {
            reply = collect(session, input) => reply,
            error = caller.until_refused(api, Access::Write) => Err(error),
        }
    };
    let reply = timeout(TIME_MAX, collected).await.map_err(|_| {
        Error::Precondition(format!(
            "the command ran for more than {} seconds and was ended: run longer ones over a WebSocket",
            TIME_MAX.as_secs()
        ))
    })??;
    Ok(Json(StreamResultOfExecCommandReply {
        result: Some(reply),
        error: None,
    })
    .into_response())
}

/// Base64 as it was meant: the SDK writes bytes as Python shows them, `b'aGkK'`.
fn sent_bytes(text: &str) -> String {
    text.strip_prefix("b'")
        .and_then(|rest| rest.strip_suffix('\''))
        .unwrap_or(text)
        .to_owned()
}

/// Gives the command its input and keeps what it writes, until it ends. Dropped before, it ends the command.
async fn collect(session: ExecSession, input: Vec<ExecInput>) -> Result<ExecCommandReply, Error> {
    let ExecSession {
        input: sender,
        mut output,
    } = session;
    let feed = async move {
        for piece in input {
            // A command that does not read its input is no failure.
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        // The way in stays open until the end: closing it before would take a command for left alone.
        std::future::pending::<Result<ExecCommandReply, Error>>().await
    };
    let keep = async move {
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        while let Some(piece) = output.recv().await {
            match piece {
                ExecOutput::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecOutput::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ExecOutput::Exited { code } => {
                    return Ok(ExecCommandReply {
                        stdout: written(&stdout),
                        stderr: written(&stderr),
                        exited: true,
                        exit_code: i64::from(code),
                    });
                }
            }
            if stdout.len() + stderr.len() > OUTPUT_MAX_BYTES {
                return Err(Error::Precondition(format!(
                    "the command wrote more than {} MiB and was ended: run such ones over a WebSocket",
                    OUTPUT_MAX_BYTES / (1024 * 1024)
                )));
            }
        }
        Err(Error::Precondition(
            "the command was cut off before it ended: the instance is gone".to_owned(),
        ))
    };
    tokio::select! {
        reply = feed => reply,
        reply = keep => reply,
    }
}

fn written(bytes: &[u8]) -> Option<ExecCommandIo> {
    Some(ExecCommandIo {
        data: STANDARD.encode(bytes),
        close: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_the_sdk_are_read_as_meant() {
        assert_eq!(sent_bytes("aGkK"), "aGkK");
        assert_eq!(sent_bytes("b'aGkK'"), "aGkK");
    }

    #[tokio::test]
    async fn endless_output_ends_the_command() {
        let (sender, _taken) = tokio::sync::mpsc::channel(1);
        let (printed, output) = tokio::sync::mpsc::channel(1);
        let writer = tokio::spawn(async move {
            let line = bytes::Bytes::from(vec![b'y'; 1024 * 1024]);
            while printed.send(ExecOutput::Stdout(line.clone())).await.is_ok() {}
        });
        let session = ExecSession {
            input: sender,
            output,
        };
        let refused = collect(session, Vec::new()).await.unwrap_err();
        assert!(refused.to_string().contains("8 MiB"), "{refused}");
        writer.await.unwrap();
    }
}
