//! `tram exec [-i] [-t] SERVICE|INSTANCE -- CMD…`: runs a command inside a running instance.
//!
//! Standard streams travel as base64 in JSON frames, so they are binary-safe. Sending and receiving go on at the
//! same time, since a program may write before it has read all of its input. The command's exit code is ours.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use crate::{
    client::{Client, Receiver, Sender},
    error::Error,
    host::Input,
    printer::Printer,
    resolve,
    session::Session,
    view::text,
};

/// Where the API runs commands.
pub(super) const PATH: &str = "/v1/streams/instances/exec";
/// What is run when nothing is named.
const DEFAULT_COMMAND: &str = "/bin/sh";
/// How much of standard input a frame carries.
pub(super) const STDIN_CHUNK_BYTES: usize = 16 * 1024;
/// How long finding out what `SERVICE|INSTANCE` names may take in all; each call has its own deadline within.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A service (any of its instances) or an instance
    #[arg(value_name = "SERVICE|INSTANCE")]
    pub target: String,
    /// Pass standard input on
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// The command and its arguments, after --; without it /bin/sh
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<u8, Error> {
    if arguments.tty && !session.host.stdin_is_terminal {
        return Err(Error::input(
            "standard input is not a terminal",
            "leave `-t` out: `-i` alone passes any input on",
        ));
    }
    let client = session.client()?;
    let (id, id_type) = match timeout(RESOLVE_TIMEOUT, target(&client, &arguments.target)).await {
        Ok(found) => found?,
        Err(_) => return Err(Error::Exec("the server takes too long to answer".to_owned())),
    };
    let command = if arguments.command.is_empty() {
        vec![DEFAULT_COMMAND.to_owned()]
    } else {
        arguments.command
    };
    let stream = client.stream(PATH, &[]).await?;
    let (mut sender, receiver) = stream.split();
    sender
        .send(&json!({
            "id": id,
            "idType": id_type,
            "body": { "command": command, "disableTty": !arguments.tty },
        }))
        .await?;
    let terminal = if arguments.tty { Some(Raw::new()?) } else { None };
    let input = Forward {
        stdin: arguments.interactive.then_some(session.host.stdin),
        windows: if arguments.tty {
            Some(signal(SignalKind::window_change()).map_err(Error::Terminal)?)
        } else {
            None
        },
    };
    let mut end = signal(SignalKind::terminate()).map_err(Error::Terminal)?;
    let code = tokio::select! {
        code = receive(receiver, &session.printer) => code,
        error = input.send(sender) => Err(error),
        // Ended here rather than by the signal itself, so that the terminal is put back.
        _ = end.recv() => Err(Error::Exec("ended by SIGTERM".to_owned())),
    };
    drop(terminal);
    code
}

/// What `given` names: a service first, then an instance.
async fn target(client: &Client, given: &str) -> Result<(String, &'static str), Error> {
    match resolve::service(client, given).await {
        Ok(service) => Ok((service.id, "SERVICE_ID")),
        Err(Error::NotFound { near, list, .. }) => match resolve::one(client, resolve::INSTANCE, given).await
        {
            Ok(instance) => Ok((text(&instance, "id").to_owned(), "INSTANCE_ID")),
            Err(Error::NotFound { .. }) => Err(Error::NotFound {
                kind: "service or instance",
                name: given.to_owned(),
                near,
                list,
            }),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Hands on what the command writes, until it has ended; gives back its exit code.
async fn receive(mut receiver: Receiver, printer: &Printer) -> Result<u8, Error> {
    while let Some(frame) = receiver.next().await? {
        if let Some(error) = frame.get("error") {
            return Err(Error::Exec(
                text(error, "message").trim_end_matches('.').to_owned(),
            ));
        }
        let result = frame.get("result").cloned().unwrap_or_default();
        if let Some(bytes) = data(&result, "stdout")? {
            printer.bytes(&bytes)?;
        }
        if let Some(bytes) = data(&result, "stderr")? {
            printer.error_bytes(&bytes);
        }
        if result.get("exited").and_then(Value::as_bool) == Some(true) {
            let code = crate::view::number(&result, "exit_code");
            // An exit code is a byte; a server that says more says "failed".
            return Ok(u8::try_from(code).unwrap_or(u8::MAX));
        }
    }
    Err(Error::Exec(
        "the connection ended before the command did".to_owned(),
    ))
}

/// What a frame carries of a stream; `None` for nothing.
pub(super) fn data(result: &Value, stream: &str) -> Result<Option<Vec<u8>>, Error> {
    let encoded = result
        .get(stream)
        .map(|stream| text(stream, "data"))
        .unwrap_or("");
    if encoded.is_empty() {
        return Ok(None);
    }
    BASE64
        .decode(encoded)
        .map(Some)
        .map_err(|source| Error::Exec(format!("the server sent {stream} that is not base64 ({source})")))
}

/// What goes to the command: input and the size of the window.
struct Forward {
    stdin: Option<Input>,
    windows: Option<Signal>,
}

impl Forward {
    /// Sends until something fails; what it returns is why.
    async fn send(mut self, mut sender: Sender) -> Error {
        match self.pump(&mut sender).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn pump(&mut self, sender: &mut Sender) -> Result<std::convert::Infallible, Error> {
        if self.windows.is_some() {
            window(sender).await?;
        }
        if self.stdin.is_none() {
            sender
                .send(&json!({ "body": { "stdin": { "close": true } } }))
                .await?;
        }
        let mut chunk = vec![0; STDIN_CHUNK_BYTES];
        loop {
            tokio::select! {
                read = read(&mut self.stdin, &mut chunk) => {
                    let bytes = read.map_err(|source| Error::Read {
                        what: "standard input".to_owned(),
                        source,
                    })?;
                    let body = if bytes.is_empty() {
                        self.stdin = None;
                        json!({ "close": true })
                    } else {
                        json!({ "data": BASE64.encode(bytes) })
                    };
                    sender.send(&json!({ "body": { "stdin": body } })).await?;
                }
                () = resized(&mut self.windows) => window(sender).await?,
                kept = sender.keep_alive() => kept?,
            }
        }
    }
}

/// The next piece of input, empty at its end; waits for ever when there is none.
async fn read<'c>(stdin: &mut Option<Input>, chunk: &'c mut [u8]) -> std::io::Result<&'c [u8]> {
    match stdin {
        Some(stdin) => {
            let count = stdin.read(chunk).await?;
            Ok(chunk.get(..count).unwrap_or_default())
        }
        None => std::future::pending().await,
    }
}

/// Resolves when the window has another size; never without a terminal.
async fn resized(windows: &mut Option<Signal>) {
    match windows {
        Some(windows) => {
            if windows.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

async fn window(sender: &mut Sender) -> Result<(), Error> {
    // A terminal that does not know its size keeps the remote default.
    let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) else {
        return Ok(());
    };
    if size.ws_row == 0 || size.ws_col == 0 {
        return Ok(());
    }
    let body = json!({ "tty_size": { "height": size.ws_row, "width": size.ws_col } });
    Ok(sender.send(&json!({ "body": body })).await?)
}

/// The terminal in raw mode, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn new() -> Result<Self, Error> {
        let before = tcgetattr(rustix::stdio::stdin()).map_err(|errno| Error::Terminal(errno.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)
            .map_err(|errno| Error::Terminal(errno.into()))?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to put back.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}
