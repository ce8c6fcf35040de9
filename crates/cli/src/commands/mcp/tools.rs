//! What the tools do: each is a call or two of the API, and its answer as JSON.
//!
//! Only sandboxes are touched: an agent that names another service by mistake is refused. Files go through the executor
//! inside (`/.tramontane/executor file …`), so that nothing is asked of the image. An error is a text that says what to
//! do, for an agent acts on what it reads.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::{
    client::Client,
    commands::{
        capture::{Captured, Kept, capture},
        deploy::specs::Variable,
        sandbox,
    },
    error::Error,
    resolve::{self, Service},
    view::{text, texts},
};

/// The executor in every sandbox, and its command for files.
const EXECUTOR: [&str; 2] = ["/.tramontane/executor", "file"];
/// How long a command may take unless told otherwise: what agents wait for without giving up.
pub(super) const TIMEOUT_SECONDS: u64 = 60;
/// Longest time of a command: an hour. What takes longer belongs into the background.
pub(super) const TIMEOUT_SECONDS_MAX: u64 = 3600;
/// How much of each stream an agent gets unless it asks for more: some thousand lines, which it has to read.
pub(super) const OUTPUT_BYTES: usize = 64 * 1024;
/// Most of each stream.
pub(super) const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Largest file in one call: it is held in memory, several times, as JSON.
pub(super) const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most entries of a directory in one answer.
pub(super) const ENTRIES_MAX: usize = 1000;
/// Most bytes that the executor may say of a directory: ten thousand entries with the longest names.
const LISTING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a sandbox may take to be ready: an image may have to be fetched.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a file may take: the largest over a slow line.
const FILE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    name: Option<String>,
    image: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    instance_type: Option<String>,
    #[serde(default)]
    delete_after_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    sandbox: String,
    command: Option<String>,
    argv: Option<Vec<String>>,
    #[serde(default)]
    stdin: String,
    timeout_seconds: Option<u64>,
    max_output_bytes: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    sandbox: String,
    path: String,
    #[serde(default)]
    offset: u64,
    max_bytes: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Write {
    sandbox: String,
    path: String,
    content: String,
    #[serde(default)]
    is_base64: bool,
    mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    sandbox: String,
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fork {
    sandbox: String,
    count: Option<usize>,
    #[serde(default)]
    disk_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    sandbox: String,
}

/// Calls one tool.
///
/// # Errors
/// A text for the agent.
pub(super) async fn call(
    client: &Client,
    tool: &str,
    arguments: Map<String, Value>,
) -> Result<Value, String> {
    match tool {
        "create_sandbox" => create(client, given(arguments)?).await,
        "run" => run(client, given(arguments)?).await,
        "read_file" => read(client, given(arguments)?).await,
        "write_file" => write(client, given(arguments)?).await,
        "list_files" => list(client, given(arguments)?).await,
        "fork_sandbox" => fork(client, given(arguments)?).await,
        "list_sandboxes" => {
            let Nothing {} = given(arguments)?;
            let sandboxes = sandboxes(client).await?;
            let told: Vec<Value> = sandboxes.iter().map(|one| about(&one.value)).collect();
            Ok(json!({ "sandboxes": told }))
        }
        "delete_sandbox" => {
            let named: Named = given(arguments)?;
            let found = find(client, &named.sandbox).await?;
            client
                .delete(&format!("/v1/services/{}", found.id))
                .await
                .map_err(|error| said(&error.into()))?;
            Ok(json!({ "deleted": found.name }))
        }
        other => Err(format!("there is no tool `{other}`")),
    }
}

async fn create(client: &Client, wanted: Create) -> Result<Value, String> {
    let name = wanted.name.unwrap_or_else(sandbox::made_up_name);
    let make = sandbox::Make {
        image: wanted.image.unwrap_or_else(|| sandbox::DEFAULT_IMAGE.to_owned()),
        env: wanted
            .env
            .into_iter()
            .map(|(key, value)| Variable { key, value })
            .collect(),
        instance_type: wanted
            .instance_type
            .unwrap_or_else(|| sandbox::DEFAULT_INSTANCE_TYPE.to_owned()),
        region: None,
        registry_secret: String::new(),
        timeout: READY_TIMEOUT,
    };
    let scaling = json!({ "min": 1, "max": 1 });
    let service = sandbox::make(
        client,
        &name,
        &make,
        &sandbox::Start::default(),
        &scaling,
        wanted.delete_after_seconds,
    )
    .await
    .map_err(|error| said(&error))?;
    if let Err(error) = sandbox::ready(client, &service, READY_TIMEOUT).await {
        // An agent that is told of a failure does not clean up after it.
        let deleted = client
            .delete(&format!("/v1/services/{}", text(&service, "id")))
            .await;
        return Err(match deleted {
            Ok(_) => format!("{}; it was deleted again", said(&error)),
            Err(_) => format!("{}; delete the sandbox `{name}`", said(&error)),
        });
    }
    Ok(json!({ "sandbox": name }))
}

async fn fork(client: &Client, wanted: Fork) -> Result<Value, String> {
    let count = within("count", wanted.count, 1, sandbox::fork::COUNT_MAX)?;
    let holding = match wanted.disk_only {
        true => sandbox::fork::Holding::Disk,
        false => sandbox::fork::Holding::Processes,
    };
    let found = find(client, &wanted.sandbox).await?;
    let forked = sandbox::fork::fork(client, &found, count, holding, false, Some(READY_TIMEOUT))
        .await
        .map_err(|error| said(&error))?;
    let names: Vec<&str> = forked
        .services
        .iter()
        .map(|service| text(service, "name"))
        .collect();
    Ok(json!({ "sandboxes": names }))
}

async fn run(client: &Client, wanted: Run) -> Result<Value, String> {
    let command = match (wanted.command, wanted.argv) {
        (Some(line), None) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line],
        (None, Some(argv)) if !argv.is_empty() => argv,
        _ => {
            return Err(
                "give either `command`, a line for the shell, or `argv`, a program and its arguments"
                    .to_owned(),
            );
        }
    };
    let seconds = within(
        "timeout_seconds",
        wanted.timeout_seconds,
        TIMEOUT_SECONDS,
        TIMEOUT_SECONDS_MAX,
    )?;
    let limit = within(
        "max_output_bytes",
        wanted.max_output_bytes,
        OUTPUT_BYTES,
        OUTPUT_BYTES_MAX,
    )?;
    let found = find(client, &wanted.sandbox).await?;
    let running = capture(client, &found.id, &command, wanted.stdin.as_bytes(), limit);
    let done = timeout(Duration::from_secs(seconds), running)
        .await
        .map_err(|_| {
            format!(
                "the command had not ended after {seconds} seconds and was killed; give a longer `timeout_seconds`, or \
                 run it in the background with its output sent to a file"
            )
        })?
        .map_err(|error| said(&error))?;
    let mut result = json!({ "exit_code": done.code });
    if let Some(result) = result.as_object_mut() {
        for (name, kept) in [("stdout", done.stdout), ("stderr", done.stderr)] {
            result.insert(name.to_owned(), String::from_utf8_lossy(&kept.bytes).into());
            if kept.dropped() > 0 {
                result.insert(format!("{name}_bytes_dropped"), kept.dropped().into());
            }
        }
    }
    Ok(result)
}

async fn read(client: &Client, wanted: Read) -> Result<Value, String> {
    let limit = within("max_bytes", wanted.max_bytes, OUTPUT_BYTES_MAX, FILE_BYTES_MAX)?;
    let found = find(client, &wanted.sandbox).await?;
    // One byte more than is returned tells whether there is more.
    let length = limit.saturating_add(1);
    let arguments = [
        "read",
        &wanted.path,
        &wanted.offset.to_string(),
        &length.to_string(),
    ];
    let mut bytes = file(client, &found, &arguments, &[], length).await?.bytes;
    let more = bytes.len() > limit;
    bytes.truncate(limit);
    let next = wanted
        .offset
        .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    let (content, is_base64) = as_text(bytes);
    let mut result = json!({ "content": content, "is_base64": is_base64, "truncated": more });
    if more && let Some(result) = result.as_object_mut() {
        result.insert("next_offset".to_owned(), next.into());
    }
    Ok(result)
}

async fn write(client: &Client, wanted: Write) -> Result<Value, String> {
    let bytes = if wanted.is_base64 {
        BASE64
            .decode(&wanted.content)
            .map_err(|error| format!("`content` is not base64: {error}"))?
    } else {
        wanted.content.into_bytes()
    };
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!(
            "`content` is larger than {FILE_BYTES_MAX} bytes: write it in parts with run"
        ));
    }
    let found = find(client, &wanted.sandbox).await?;
    let mut arguments = vec!["write", &wanted.path];
    arguments.extend(wanted.mode.as_deref());
    file(client, &found, &arguments, &bytes, 0).await?;
    Ok(json!({ "written_bytes": bytes.len() }))
}

async fn list(client: &Client, wanted: List) -> Result<Value, String> {
    let found = find(client, &wanted.sandbox).await?;
    let kept = file(client, &found, &["list", &wanted.path], &[], LISTING_BYTES_MAX).await?;
    let mut listing: Value = serde_json::from_slice(&kept.bytes).map_err(|_| {
        "the sandbox's answer is not a list: the directory may be too large; use run".to_owned()
    })?;
    if let Some(entries) = listing.get_mut("entries").and_then(Value::as_array_mut)
        && entries.len() > ENTRIES_MAX
    {
        entries.truncate(ENTRIES_MAX);
        listing["truncated"] = true.into();
    }
    Ok(listing)
}

/// Has the executor work on a file; gives back what it writes.
async fn file(
    client: &Client,
    sandbox: &Service,
    arguments: &[&str],
    input: &[u8],
    limit: usize,
) -> Result<Kept, String> {
    let command: Vec<String> = EXECUTOR
        .iter()
        .chain(arguments)
        .map(|&word| word.to_owned())
        .collect();
    let Captured { stdout, stderr, code } = timeout(
        FILE_TIMEOUT,
        capture(client, &sandbox.id, &command, input, limit.max(OUTPUT_BYTES)),
    )
    .await
    .map_err(|_| {
        format!(
            "the sandbox did not answer within {} seconds",
            FILE_TIMEOUT.as_secs()
        )
    })?
    .map_err(|error| said(&error))?;
    if code != 0 {
        return Err(String::from_utf8_lossy(&stderr.bytes).trim().to_owned());
    }
    Ok(stdout)
}

/// The bytes of a file as text where they are, else as base64, and which. A character that the end of a part cuts in two
/// makes it base64 as well: nothing is lost or changed.
fn as_text(bytes: Vec<u8>) -> (String, bool) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, false),
        Err(wrong) => (BASE64.encode(wrong.as_bytes()), true),
    }
}

/// Every sandbox.
async fn sandboxes(client: &Client) -> Result<Vec<Service>, String> {
    let mut all = resolve::services(client).await.map_err(|error| said(&error))?;
    all.retain(|service| is_sandbox(&service.value));
    Ok(all)
}

/// The sandbox of this name or id.
async fn find(client: &Client, named: &str) -> Result<Service, String> {
    let unknown =
        || format!("there is no sandbox `{named}`: list_sandboxes shows all, create_sandbox makes one");
    match resolve::service(client, named).await {
        Ok(service) if is_sandbox(&service.value) => Ok(service),
        Ok(_) | Err(Error::NotFound { .. }) => Err(unknown()),
        Err(error) => Err(said(&error)),
    }
}

fn is_sandbox(service: &Value) -> bool {
    text(service, "type") == "SANDBOX"
}

fn about(service: &Value) -> Value {
    json!({
        "sandbox": text(service, "name"),
        "status": text(service, "status"),
        "created_at": text(service, "created_at"),
        "messages": texts(service, "messages"),
    })
}

/// The arguments of a tool.
fn given<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| format!("wrong arguments: {error}"))
}

/// A number of the arguments, or what it is without one.
fn within<N: PartialOrd + std::fmt::Display>(
    name: &str,
    given: Option<N>,
    usual: N,
    most: N,
) -> Result<N, String> {
    match given {
        Some(given) if given > most => Err(format!("`{name}` is at most {most}, not {given}")),
        Some(given) => Ok(given),
        None => Ok(usual),
    }
}

/// An error with its causes and what to do about it.
fn said(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    match error.hint() {
        Some(hint) => format!("{text}; {hint}"),
        None => text,
    }
}
