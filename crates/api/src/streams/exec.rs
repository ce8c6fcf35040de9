//! Commands in running instances, over a WebSocket or, without an upgrade, in one answer (see `plain`).
//!
//! The command line client repeats id and command in every frame, the browser gives the id in the URL and sends
//! bodies only; both are taken. Input and output run in two halves, so that a command that writes while it does not
//! read cannot block either. Whichever half ends, the other ends with it, and dropping the session ends the command;
//! so does the end of the token that it was started with.

use std::time::Duration;

use axum::{
    extract::ws::{Message, WebSocket},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde::Deserialize;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tram_site::{
    ExecRequest, ExecSession, Session,
    streams::{ExecInput, ExecOutput, TerminalSize},
};
use tram_store::{filter, record::Instance};
use tram_types::{InstanceId, OrganizationId, ServiceId, status::InstanceStatus};

use super::frame::{self, Code};
use crate::{
    audit,
    auth::{Access, Caller},
    endpoint::{Endpoint, Incoming, read_query},
    error::Error,
    state::ApiState,
    wire::stream::{ExecCommandIo, ExecCommandReply, StreamResultOfExecCommandReply},
};

mod plain;
mod target;

use target::Target;

/// How long a client may take to say what to run.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to accept a frame before it counts as gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client gets to close its side after the end: it has read the last frame by then, or is gone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a silent client is asked whether it is there: idle connections are cut by many proxies after a minute.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Largest message from a client: input comes in pieces of some KiB, base64.
const MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most words of a command.
const COMMAND_WORDS_MAX: usize = 1_000;
/// What a terminal measures that nobody measured.
const DEFAULT_TERMINAL: TerminalSize = TerminalSize {
    height: 24,
    width: 80,
};

/// A frame from the client.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Frame {
    id: Option<String>,
    #[serde(alias = "idType")]
    id_type: Option<String>,
    body: Option<FrameBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FrameBody {
    command: Option<Vec<String>>,
    #[serde(alias = "ttySize")]
    tty_size: Option<FrameSize>,
    stdin: Option<FrameInput>,
    #[serde(alias = "disableTty")]
    disable_tty: Option<bool>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct FrameSize {
    height: u16,
    width: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FrameInput {
    data: Option<String>,
    close: Option<bool>,
}

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::stream::<Target, _, _>("/v1/streams/instances/exec", "ExecCommand", Access::Write, exec)
            .giving::<StreamResultOfExecCommandReply>(),
    ]
}

async fn exec(mut incoming: Incoming) -> Result<Response, Error> {
    let caller = incoming.caller.take().ok_or(Error::Internal {
        doing: "running a command without a caller",
        source: None,
    })?;
    let target: Target = read_query(&incoming.parts)?;
    let api = incoming.api.clone();
    if let Some(id) = &target.id {
        // An id that is wrong is told before the connection is taken over.
        find(&api, caller.organization, id, target.id_type.as_deref()).await?;
    }
    if !frame::wants_websocket(&incoming.parts) {
        return plain::exec(&api, &caller, target).await;
    }
    let upgrade = frame::upgrade(&mut incoming.parts, MESSAGE_MAX_BYTES).await?;
    Ok(upgrade.on_upgrade(move |socket| run(api, caller, target, socket)))
}

async fn run(api: ApiState, caller: Caller, target: Target, mut socket: WebSocket) {
    let started = match timeout(START_TIMEOUT, first_frame(&mut socket)).await {
        Ok(Ok(Some(frame))) => start(&api, &caller, &target, frame).await,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::field("body.command", "was not given in time")),
    };
    match started {
        Ok((session, first_input, _in_use)) => {
            let refused = caller.until_refused(&api, Access::Write);
            converse(socket, session, first_input, refused).await;
        }
        Err(error) => refuse(socket, &error).await,
    }
}

async fn refuse(mut socket: WebSocket, error: &Error) {
    let frame = frame::failure(Code::of(error), &error.to_string());
    let _ = timeout(SEND_TIMEOUT, async {
        socket.send(frame::text(frame)).await?;
        socket.send(frame::normal_close()).await
    })
    .await;
}

/// The first frame that says what to run; `None` when the client leaves.
async fn first_frame(socket: &mut WebSocket) -> Result<Option<Frame>, Error> {
    loop {
        match socket.recv().await {
            None | Some(Err(_) | Ok(Message::Close(_))) => return Ok(None),
            Some(Ok(message)) => {
                if let Some(frame) = parse(&message)?
                    && frame.body.as_ref().is_some_and(|body| body.command.is_some())
                {
                    return Ok(Some(frame));
                }
            }
        }
    }
}

fn parse(message: &Message) -> Result<Option<Frame>, Error> {
    let bytes = match message {
        Message::Text(text) => text.as_bytes(),
        Message::Binary(bytes) => bytes,
        _ => return Ok(None),
    };
    serde_json::from_slice(bytes)
        .map(Some)
        .map_err(|error| Error::Malformed(error.to_string()))
}

/// Starts the command. What is given last says that the instance is in use: hold it until the command has ended.
async fn start(
    api: &ApiState,
    caller: &Caller,
    target: &Target,
    frame: Frame,
) -> Result<(ExecSession, Vec<ExecInput>, Session), Error> {
    let id = frame
        .id
        .as_deref()
        .filter(|id| !id.is_empty())
        .or(target.id.as_deref());
    let id = id.ok_or_else(|| Error::field("id", "must be the id of an instance or a service"))?;
    let kind = frame
        .id_type
        .as_deref()
        .filter(|kind| !kind.is_empty())
        .or(target.id_type.as_deref());
    let instance = find(api, caller.organization, id, kind).await?;
    let body = frame.body.unwrap_or_default();
    let command = body.command.clone().unwrap_or_default();
    if command.is_empty() || command.len() > COMMAND_WORDS_MAX {
        return Err(Error::field(
            "body.command",
            format!("must have 1 to {COMMAND_WORDS_MAX} words"),
        ));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(Error::field("body.command", "must not contain a zero byte"));
    }
    let has_terminal = !body.disable_tty.unwrap_or(false);
    let request = ExecRequest {
        command,
        env: Vec::new(),
        terminal: has_terminal.then(|| body.tty_size.and_then(size).unwrap_or(DEFAULT_TERMINAL)),
    };
    let site = api.sites.for_region(&instance.region).ok_or_else(|| {
        Error::Precondition(format!("no site serves region `{}` any more", instance.region))
    })?;
    // Before the command starts: an instance that is being taken away now waits for it.
    let in_use = api.sites.sessions().open(instance.id);
    let session = site
        .exec(instance.id, &request)
        .await
        .map_err(|error| match error {
            tram_site::Error::NoSuchInstance(id) => {
                Error::Precondition(format!("instance `{id}` is not running: choose another one"))
            }
            tram_site::Error::Refused { message } => Error::Precondition(message),
            other => Error::Unavailable {
                message: "the command cannot be run now: try again".to_owned(),
                source: Box::new(other),
            },
        })?;
    audit::note_command(api, caller, instance.id).await;
    Ok((
        session,
        inputs(body)?
            .into_iter()
            .filter(|input| !matches!(input, ExecInput::Resize(_)))
            .collect(),
        in_use,
    ))
}

fn size(given: FrameSize) -> Option<TerminalSize> {
    (given.height > 0 && given.width > 0).then_some(TerminalSize {
        height: given.height,
        width: given.width,
    })
}

/// The instance that is meant, if a command can run in it.
async fn find(
    api: &ApiState,
    organization: OrganizationId,
    id: &str,
    kind: Option<&str>,
) -> Result<Instance, Error> {
    const RUNNING: [InstanceStatus; 3] = [
        InstanceStatus::Healthy,
        InstanceStatus::Unhealthy,
        InstanceStatus::Starting,
    ];
    match kind {
        Some("SERVICE_ID") => {
            let service: ServiceId = id.parse().map_err(|_| Error::not_found(ServiceId::KIND, id))?;
            api.store.service(organization, service).await?;
            for status in RUNNING {
                let filter = filter::Instances {
                    service_id: Some(service),
                    statuses: vec![status],
                    ..filter::Instances::default()
                };
                let one = filter::Page { limit: 1, offset: 0 };
                let found = api.store.list_instances(organization, &filter, one).await?;
                if let Some(instance) = found.items.into_iter().next() {
                    return Ok(instance);
                }
            }
            Err(Error::Precondition(
                "no instance of this service is running: send it a request, or wait until it started"
                    .to_owned(),
            ))
        }
        None | Some("INSTANCE_ID" | "INVALID") => {
            let id: InstanceId = id.parse().map_err(|_| Error::not_found(InstanceId::KIND, id))?;
            let instance = api.store.instance(organization, id).await?;
            if RUNNING.contains(&instance.status) {
                return Ok(instance);
            }
            Err(Error::Precondition(format!(
                "instance `{id}` is {}: a command needs a running one",
                instance.status
            )))
        }
        Some(other) => Err(Error::field(
            "id_type",
            format!(
                "`{}` is not INSTANCE_ID or SERVICE_ID",
                other.chars().take(64).collect::<String>()
            ),
        )),
    }
}

/// What a body has for the command, in order.
fn inputs(body: FrameBody) -> Result<Vec<ExecInput>, Error> {
    let mut found = Vec::new();
    found.extend(body.tty_size.and_then(size).map(ExecInput::Resize));
    if let Some(stdin) = body.stdin {
        if let Some(data) = stdin.data.filter(|data| !data.is_empty()) {
            let bytes = STANDARD
                .decode(data.as_bytes())
                .map_err(|_| Error::field("body.stdin.data", "must be base64"))?;
            found.push(ExecInput::Stdin(Bytes::from(bytes)));
        }
        if stdin.close == Some(true) {
            found.push(ExecInput::CloseStdin);
        }
    }
    Ok(found)
}

/// Carries input and output until the command or the client ends, or the token is `refused`.
async fn converse(
    socket: WebSocket,
    session: ExecSession,
    first_input: Vec<ExecInput>,
    refused: impl Future<Output = Error>,
) {
    let (mut sink, mut stream) = socket.split();
    let ExecSession { input, output } = session;
    let ended = tokio::select! {
        ended = write(&mut sink, output) => ended,
        ended = read(&mut stream, input, first_input) => ended,
        error = refused => Err(error),
    };
    let mut close = frame::normal_close();
    if let Err(error) = ended {
        let frame = frame::failure(Code::of(&error), &error.to_string());
        let _ = timeout(SEND_TIMEOUT, sink.send(frame::text(frame))).await;
        close = frame::close_after(&error);
    }
    let _ = timeout(SEND_TIMEOUT, sink.send(close)).await;
    // Input that is still on its way is taken and dropped: left unread, it would have the kernel reset the connection, and
    // the client lose the end of the command with it.
    let leaving = async {
        while let Some(Ok(message)) = stream.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
        }
    };
    let _ = timeout(LEAVE_TIMEOUT, leaving).await;
}

async fn read(
    stream: &mut SplitStream<WebSocket>,
    input: mpsc::Sender<ExecInput>,
    first: Vec<ExecInput>,
) -> Result<(), Error> {
    // Input after the end of the command is lost, and its output still on the way: that is not an end.
    for piece in first {
        let _ = input.send(piece).await;
    }
    while let Some(Ok(message)) = stream.next().await {
        if matches!(message, Message::Close(_)) {
            return Ok(());
        }
        if let Some(frame) = parse(&message)? {
            for piece in inputs(frame.body.unwrap_or_default())? {
                let _ = input.send(piece).await;
            }
        }
    }
    Ok(())
}

async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    mut output: mpsc::Receiver<ExecOutput>,
) -> Result<(), Error> {
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.tick().await;
    loop {
        let (message, is_last) = tokio::select! {
            piece = output.recv() => match piece {
                Some(piece) => {
                    let is_last = matches!(piece, ExecOutput::Exited { .. });
                    (frame::text(frame::result(&reply(piece))), is_last)
                }
                None => {
                    return Err(Error::Precondition(
                        "the command was cut off before it ended: the instance is gone".to_owned(),
                    ));
                }
            },
            _ = pings.tick() => (Message::Ping(Bytes::new()), false),
        };
        let sent = timeout(SEND_TIMEOUT, sink.send(message)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return Ok(());
        }
    }
}

/// A frame for the client; `exited` and `exit_code` are in every one, since one official client relies on it.
fn reply(piece: ExecOutput) -> ExecCommandReply {
    let io = |bytes: Bytes| {
        Some(ExecCommandIo {
            data: STANDARD.encode(&bytes),
            close: false,
        })
    };
    match piece {
        ExecOutput::Stdout(bytes) => ExecCommandReply {
            stdout: io(bytes),
            ..ExecCommandReply::default()
        },
        ExecOutput::Stderr(bytes) => ExecCommandReply {
            stderr: io(bytes),
            ..ExecCommandReply::default()
        },
        ExecOutput::Exited { code } => ExecCommandReply {
            exited: true,
            exit_code: i64::from(code),
            ..ExecCommandReply::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_frame_are_read() {
        for text in [
            r#"{"id":"a","idType":"SERVICE_ID","body":{"command":["sh"],"disableTty":true,"ttySize":{"height":2,"width":3}}}"#,
            r#"{"id":"a","id_type":"SERVICE_ID","body":{"command":["sh"],"disable_tty":true,"tty_size":{"height":2,"width":3}}}"#,
        ] {
            let frame = parse(&Message::Text(text.into())).unwrap().unwrap();
            assert_eq!(frame.id_type.as_deref(), Some("SERVICE_ID"));
            let body = frame.body.unwrap();
            assert_eq!(body.disable_tty, Some(true));
            assert_eq!(
                inputs(body).unwrap(),
                [ExecInput::Resize(TerminalSize { height: 2, width: 3 })]
            );
        }
    }

    #[test]
    fn input_is_base64_and_then_closed() {
        let body: FrameBody = serde_json::from_str(r#"{"stdin":{"data":"aGkK","close":true}}"#).unwrap();
        assert_eq!(
            inputs(body).unwrap(),
            [ExecInput::Stdin("hi\n".into()), ExecInput::CloseStdin]
        );
        let wrong: FrameBody = serde_json::from_str(r#"{"stdin":{"data":"!"}}"#).unwrap();
        assert!(inputs(wrong).is_err());
    }

    #[test]
    fn every_result_says_whether_it_is_over() {
        let frame = frame::result(&reply(ExecOutput::Stdout("hi\n".into())));
        let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
        let stdout = serde_json::json!({"data": "aGkK", "close": false});
        assert_eq!(
            frame["result"],
            serde_json::json!({"stdout": stdout, "stderr": null, "exited": false, "exit_code": 0})
        );
    }
}
