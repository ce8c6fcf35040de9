//! `tram login`: checks a token with its server, then keeps both as a context.

use reqwest::Url;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::{
    client::{Client, is_loopback},
    context::write_context,
    error::Error,
    host::Host,
    session::Session,
    view::{take, text},
};

/// Longest line that is read for a token: tokens of this contract have 64 characters.
const TOKEN_MAX_BYTES: u64 = 4096;

/// Arguments of `login`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Address of the server; without it the one that other commands use
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The token; without it one line of standard input is read
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Name of the context; without it the server's host, `local` for this machine
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

pub(crate) async fn run(mut session: Session, arguments: Arguments) -> Result<(), Error> {
    let url = match arguments.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => session.resolve()?.context.url,
    };
    let token = match arguments.token {
        Some(token) => token,
        None => ask(&mut session).await?,
    };
    if token.is_empty() || !token.chars().all(|character| character.is_ascii_graphic()) {
        return Err(Error::input(
            "that is not a token",
            "`tram up` prints one at its first start; on the server, `sudo tram admin new-token` makes another",
        ));
    }
    let client = Client::new(&url, &token, &session.printer)?;
    let mut reply = client.get("/v1/account/organization", &[]).await?;
    let organization = take(&mut reply, "organization");
    let name = arguments.name.unwrap_or_else(|| name_of(&url));
    let path = session.contexts_path()?;
    write_context(&path, &name, &url, &token)?;
    let value = json!({ "context": name, "url": url, "organization": text(&organization, "name") });
    session.printer.note(format_args!(
        "logged in to organization `{}` at {url}; context `{name}` is now the current one",
        text(&organization, "name"),
    ));
    if session.printer.output() != crate::Output::Table {
        session.printer.value(&value, String::new)?;
    }
    Ok(())
}

/// The name of a context for a server.
fn name_of(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) if is_loopback(&url) => "local".to_owned(),
        Ok(url) => url.host_str().unwrap_or("default").to_owned(),
        Err(_) => "default".to_owned(),
    }
}

/// Reads the token; what is typed at a terminal is not shown.
async fn ask(session: &mut Session) -> Result<String, Error> {
    let is_terminal = session.host.stdin_is_terminal;
    if is_terminal {
        session.printer.error_bytes(b"token: ");
    }
    let interrupt = session.host.interrupt.clone();
    let line = tokio::select! {
        // First, so that Ctrl-C never ends the process by itself, which would leave the terminal silent.
        biased;
        () = interrupt.wait() => Err(Error::Interrupted),
        line = read_line(&mut session.host) => line,
    };
    if is_terminal {
        session.printer.error_bytes(b"\n");
    }
    line
}

async fn read_line(host: &mut Host) -> Result<String, Error> {
    let _hidden = host.stdin_is_terminal.then(Hidden::new).transpose()?;
    let mut line = String::new();
    BufReader::new((&mut host.stdin).take(TOKEN_MAX_BYTES))
        .read_line(&mut line)
        .await
        .map_err(|source| Error::Read {
            what: "the token from standard input".to_owned(),
            source,
        })?;
    Ok(line.trim().to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden(rustix::termios::Termios);

impl Hidden {
    fn new() -> Result<Self, Error> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(rustix::stdio::stdin()).map_err(|errno| Error::Terminal(errno.into()))?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &silent)
            .map_err(|errno| Error::Terminal(errno.into()))?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to put back.
        let _ = rustix::termios::tcsetattr(
            rustix::stdio::stdin(),
            rustix::termios::OptionalActions::Now,
            &self.0,
        );
    }
}
