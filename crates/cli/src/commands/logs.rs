//! `tram logs SERVICE [-f]`: what its instances wrote, and what the platform says about them.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;
use tram_types::Timestamp;

use crate::{
    EXIT_SUCCESS, age,
    client::{Client, Query},
    error::Error,
    printer::{Output, Printer},
    resolve,
    session::Session,
    view::{list, short, text},
};

/// Lines asked for at once: the most that the API gives.
const PAGE_LINES: usize = 1000;
/// How long to wait before following again after the stream broke.
const RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Its name, app/name, its id, or at least eight characters of its id
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Go on with new lines as they come
    #[arg(long, short)]
    pub follow: bool,
    /// How far back to start
    #[arg(long, value_name = "SPAN", default_value = "15m", value_parser = age::parse_span)]
    pub since: Duration,
    /// Only this instance
    #[arg(long, value_name = "INSTANCE")]
    pub instance: Option<String>,
    /// What the build of the newest deployment wrote
    #[arg(long, conflicts_with_all = ["instance", "stream"])]
    pub build: bool,
    /// Only this stream; koyeb is what the platform says
    #[arg(long, value_enum, value_name = "STREAM")]
    pub stream: Option<Stream>,
    /// Only what was written, without time and origin
    #[arg(long)]
    pub raw: bool,
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stream {
    /// The program's standard output.
    Stdout,
    /// The program's standard error.
    Stderr,
    /// The platform.
    Koyeb,
}

impl Stream {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Koyeb => "koyeb",
        }
    }
}

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<u8, Error> {
    let client = session.client()?;
    let service = resolve::service(&client, &arguments.service).await?;
    let mut filter: Vec<(&str, String)> = Vec::new();
    if arguments.build {
        filter.push(("type", "build".to_owned()));
        let deployment = text(&service.value, "latest_deployment_id");
        filter.push(("deployment_id", deployment.to_owned()));
    } else {
        filter.push(("type", "runtime".to_owned()));
        match &arguments.instance {
            Some(given) => {
                filter.push((
                    "instance_id",
                    resolve::id(&client, resolve::INSTANCE, given).await?,
                ));
            }
            None => filter.push(("service_id", service.id.clone())),
        }
    }
    if let Some(stream) = arguments.stream {
        filter.push(("streams", stream.as_str().to_owned()));
    }
    let filter: Vec<(&str, &str)> = filter.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let shown = Shown {
        printer: &session.printer,
        raw: arguments.raw,
    };
    tokio::select! {
        result = show(&session, &client, &filter, &arguments, &shown) => result?,
        () = session.host.interrupt.wait() => {}
    }
    Ok(EXIT_SUCCESS)
}

async fn show(
    session: &Session,
    client: &Client,
    filter: Query<'_>,
    arguments: &Arguments,
    shown: &Shown<'_>,
) -> Result<(), Error> {
    let now = session.now();
    let start = now.minus(arguments.since).to_string();
    let mut last = past(client, filter, &start, &now.to_string(), shown).await?;
    if !arguments.follow {
        if last.is_none() {
            session.printer.note(format_args!(
                "no lines in the last {}; look further back with `--since`",
                age::span(arguments.since)
            ));
        }
        return Ok(());
    }
    loop {
        let start = last.clone().unwrap_or_else(|| now.to_string());
        match tail(client, filter, &start, &mut last, shown).await {
            Ok(()) => return Ok(()),
            Err(Error::Client(error)) if error.is_passing() => {
                session.printer.note(format_args!(
                    "{error}; trying again in {}s",
                    RECONNECT_DELAY.as_secs()
                ));
                sleep(RECONNECT_DELAY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Shows the lines of a span, oldest first, and gives back the time of the last one.
async fn past(
    client: &Client,
    filter: Query<'_>,
    start: &str,
    end: &str,
    shown: &Shown<'_>,
) -> Result<Option<String>, Error> {
    let limit = PAGE_LINES.to_string();
    let (mut start, mut end) = (start.to_owned(), end.to_owned());
    let mut last = None;
    loop {
        let mut query = filter.to_vec();
        query.extend([
            ("start", start.as_str()),
            ("end", end.as_str()),
            ("order", "asc"),
            ("limit", limit.as_str()),
        ]);
        let reply = client.get("/v1/streams/logs/query", &query).await?;
        let entries = list(&reply, "data");
        for entry in entries {
            shown.line(entry)?;
            last = Some(text(entry, "created_at").to_owned());
        }
        let pagination = reply.get("pagination").cloned().unwrap_or_default();
        let has_more = pagination.get("has_more").and_then(Value::as_bool) == Some(true);
        // A page that is empty and still promises more would hold us for ever.
        if !has_more || entries.is_empty() {
            return Ok(last);
        }
        text(&pagination, "next_start").clone_into(&mut start);
        text(&pagination, "next_end").clone_into(&mut end);
    }
}

/// Follows new lines until the server ends the stream.
async fn tail(
    client: &Client,
    filter: Query<'_>,
    start: &str,
    last: &mut Option<String>,
    shown: &Shown<'_>,
) -> Result<(), Error> {
    let mut query = filter.to_vec();
    query.push(("start", start));
    let mut stream = client.stream("/v1/streams/logs/tail", &query).await?;
    while let Some(frame) = stream.next().await? {
        if let Some(error) = frame.get("error") {
            return Err(Error::Client(crate::client::Error::Stream(
                text(error, "message").to_owned(),
            )));
        }
        let Some(entry) = frame.get("result") else {
            continue;
        };
        shown.line(entry)?;
        *last = Some(text(entry, "created_at").to_owned());
    }
    stream.close().await;
    Ok(())
}

/// The last lines of something, oldest first, for messages.
pub(crate) async fn last(client: &Client, of: (&str, &str), lines: usize) -> Result<Vec<String>, Error> {
    let limit = lines.to_string();
    let query = [
        of,
        ("type", "runtime"),
        ("order", "desc"),
        ("limit", limit.as_str()),
    ];
    let reply = client.get("/v1/streams/logs/query", &query).await?;
    Ok(list(&reply, "data")
        .iter()
        .rev()
        .map(|entry| text(entry, "msg").trim_end().to_owned())
        .collect())
}

struct Shown<'p> {
    printer: &'p Printer,
    raw: bool,
}

impl Shown<'_> {
    fn line(&self, entry: &Value) -> Result<(), Error> {
        let message = text(entry, "msg").trim_end_matches(['\n', '\r']);
        match self.printer.output() {
            Output::Json => self.printer.data(entry),
            Output::Yaml => {
                self.printer.data("---")?;
                self.printer.value(entry, String::new)
            }
            Output::Table if self.raw => self.printer.data(message),
            Output::Table => {
                let labels = entry.get("labels").cloned().unwrap_or_default();
                let time = match text(entry, "created_at").parse::<Timestamp>() {
                    Ok(time) => format!("{:.3}", time.jiff()),
                    Err(_) => "-".to_owned(),
                };
                let stream = text(&labels, "stream");
                let origin = short(text(&labels, "instance_id"));
                self.printer
                    .data(format_args!("{time} {origin} {stream:<6} {message}"))
            }
        }
    }
}
