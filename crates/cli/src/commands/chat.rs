//! `tram chat MODEL`: talk to a model, and see how fast it answers.
//!
//! The answer is data and goes to standard output as it comes; everything else is talk.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::Instant,
};

use crate::{
    EXIT_SUCCESS,
    client::Client,
    error::Error,
    printer::Output,
    session::Session,
    view::{list, number, text},
};

/// What stands before what a person types.
const PROMPT: &str = "> ";

/// Arguments of `chat`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The service that serves the model, as NAME or APP/NAME
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// The one question to ask; without it you type them
    #[arg(value_name = "QUESTION")]
    pub question: Option<String>,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// How freely the model chooses its words, from 0 to 2
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
}

/// An answer, and how it came.
#[derive(Debug, Default)]
struct Told {
    text: String,
    /// Until the first word.
    first: Duration,
    /// Until the last one.
    whole: Duration,
    prompt_tokens: i64,
    tokens: i64,
}

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<u8, Error> {
    let client = session.client()?;
    let mut messages: Vec<Value> = arguments
        .system
        .iter()
        .map(|system| json!({ "role": "system", "content": system }))
        .collect();
    if let Some(question) = &arguments.question {
        messages.push(json!({ "role": "user", "content": question }));
        let told = one(&session, &client, &arguments, &messages).await?;
        show_end(&session, &told)?;
        return Ok(EXIT_SUCCESS);
    }
    let Session { host, .. } = &session;
    let is_typed = host.stdin_is_terminal;
    if is_typed {
        session
            .printer
            .note("ask something; an empty line or Ctrl-D ends");
    }
    talk(session, client, arguments, messages, is_typed).await?;
    Ok(EXIT_SUCCESS)
}

/// Question after question, each with all that was said before it.
async fn talk(
    mut session: Session,
    client: Client,
    arguments: Arguments,
    mut messages: Vec<Value>,
    is_typed: bool,
) -> Result<(), Error> {
    let stdin = std::mem::replace(&mut session.host.stdin, Box::new(tokio::io::empty()));
    let mut lines = BufReader::new(stdin).lines();
    loop {
        if is_typed {
            session.printer.error_bytes(PROMPT.as_bytes());
        }
        let line = tokio::select! {
            line = lines.next_line() => line.map_err(|source| Error::Read {
                what: "standard input".to_owned(),
                source,
            })?,
            () = session.host.interrupt.wait() => return Err(Error::Interrupted),
        };
        let question = line.as_deref().map(str::trim).unwrap_or_default();
        if question.is_empty() {
            return Ok(());
        }
        messages.push(json!({ "role": "user", "content": question }));
        match one(&session, &client, &arguments, &messages).await {
            Ok(told) => {
                show_end(&session, &told)?;
                messages.push(json!({ "role": "assistant", "content": told.text }));
            }
            // A person may ask something else: what was refused is forgotten.
            Err(error @ Error::Client(_)) if is_typed => {
                session.printer.failure(&error);
                messages.pop();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Asks once, and shows the answer as it comes.
async fn one(
    session: &Session,
    client: &Client,
    arguments: &Arguments,
    messages: &[Value],
) -> Result<Told, Error> {
    let mut body = json!({
        "model": arguments.model,
        "messages": messages,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    if let Some(most) = arguments.max_tokens {
        body["max_tokens"] = json!(most);
    }
    if let Some(temperature) = arguments.temperature {
        body["temperature"] = json!(temperature);
    }
    tokio::select! {
        told = read(session, client, &body) => told,
        () = session.host.interrupt.wait() => Err(Error::Interrupted),
    }
}

async fn read(session: &Session, client: &Client, body: &Value) -> Result<Told, Error> {
    let started = Instant::now();
    let shows = session.printer.output() == Output::Table;
    let mut told = Told::default();
    let mut answer = client.ask(body).await?;
    while let Some(part) = answer.next().await? {
        let written = list(&part, "choices")
            .first()
            .and_then(|choice| choice.get("delta"))
            .map_or("", |delta| text(delta, "content"));
        if !written.is_empty() {
            if told.text.is_empty() {
                told.first = started.elapsed();
            }
            told.text.push_str(written);
            if shows {
                session.printer.bytes(written.as_bytes())?;
            }
        }
        if let Some(usage) = part.get("usage").filter(|usage| usage.is_object()) {
            told.prompt_tokens = number(usage, "prompt_tokens");
            told.tokens = number(usage, "completion_tokens");
        }
    }
    told.whole = started.elapsed();
    Ok(told)
}

fn show_end(session: &Session, told: &Told) -> Result<(), Error> {
    let rate = tokens_a_second(told);
    if session.printer.output() == Output::Table {
        session.printer.bytes(b"\n")?;
        let rate = rate.map_or_else(String::new, |rate| format!(", {rate:.0} tokens/s"));
        session.printer.note(format_args!(
            "{} tokens after {} of prompt, first after {} ms, all after {:.1} s{rate}",
            told.tokens,
            told.prompt_tokens,
            told.first.as_millis(),
            told.whole.as_secs_f64(),
        ));
        return Ok(());
    }
    let value = json!({
        "answer": told.text,
        "prompt_tokens": told.prompt_tokens,
        "completion_tokens": told.tokens,
        "first_token_ms": u64::try_from(told.first.as_millis()).unwrap_or(u64::MAX),
        "total_ms": u64::try_from(told.whole.as_millis()).unwrap_or(u64::MAX),
        "tokens_per_second": rate,
    });
    session.printer.value(&value, String::new)
}

/// How fast it went on after the first token, if it did.
#[expect(clippy::cast_precision_loss, reason = "shown without decimals")]
fn tokens_a_second(told: &Told) -> Option<f64> {
    let writing = told.whole.saturating_sub(told.first).as_secs_f64();
    (told.tokens > 1 && writing > 0.0).then(|| (told.tokens - 1) as f64 / writing)
}
