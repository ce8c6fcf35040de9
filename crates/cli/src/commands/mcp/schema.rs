//! The tools as an agent sees them: names, what they do, and the JSON Schema of their arguments.

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Value, json};

use super::tools::{
    ENTRIES_MAX, FILE_BYTES_MAX, OUTPUT_BYTES, OUTPUT_BYTES_MAX, TIMEOUT_SECONDS, TIMEOUT_SECONDS_MAX,
};
use crate::commands::sandbox::{DEFAULT_IMAGE, DEFAULT_INSTANCE_TYPE, fork::COUNT_MAX};

/// Every tool.
pub(super) fn tools() -> Vec<Tool> {
    let sandbox =
        json!({ "type": "string", "description": "Name of the sandbox, as create_sandbox returned it" });
    let path = |what: &str| json!({ "type": "string", "description": what });
    vec![
        tool(
            "create_sandbox",
            "Create an isolated Linux computer and wait until it is ready. Returns its name.",
            ToolAnnotations::new().destructive(false).idempotent(false),
            json!({
                "name": { "type": "string", "description": "Name; without it one is made up" },
                "image": { "type": "string", "default": DEFAULT_IMAGE, "description": "Container image" },
                "env": {
                    "type": "object", "additionalProperties": { "type": "string" },
                    "description": "Variables of the environment inside",
                },
                "instance_type": {
                    "type": "string", "default": DEFAULT_INSTANCE_TYPE,
                    "description": "Size, such as nano, micro, small or medium",
                },
                "delete_after_seconds": {
                    "type": "integer", "minimum": 1,
                    "description": "Delete it by itself so long after it was made; without it it stays",
                },
            }),
            &[],
        ),
        tool(
            "run",
            "Run a command in a sandbox, wait for its end, and return its exit code, standard output and standard \
             error. A command that fails is a result with an exit code, not an error. When its time is over it is \
             killed. Start servers in the background, by setsid and with their output sent to a file.",
            ToolAnnotations::new().destructive(true).open_world(true),
            json!({
                "sandbox": sandbox,
                "command": {
                    "type": "string",
                    "description": "A line for /bin/sh in the sandbox. Give this or argv",
                },
                "argv": {
                    "type": "array", "items": { "type": "string" }, "minItems": 1,
                    "description": "A program and its arguments, run without a shell. Give this or command",
                },
                "stdin": { "type": "string", "description": "Standard input; without it it is empty" },
                "timeout_seconds": {
                    "type": "integer", "minimum": 1, "maximum": TIMEOUT_SECONDS_MAX, "default": TIMEOUT_SECONDS,
                },
                "max_output_bytes": {
                    "type": "integer", "minimum": 0, "maximum": OUTPUT_BYTES_MAX, "default": OUTPUT_BYTES,
                    "description": "How much of each output stream is returned; the rest is dropped, and counted",
                },
            }),
            &["sandbox"],
        ),
        tool(
            "read_file",
            "Read a file of a sandbox, or a part of it. Text comes as it is, other bytes as base64.",
            ToolAnnotations::new().read_only(true),
            json!({
                "sandbox": sandbox,
                "path": path("Absolute path of the file"),
                "offset": { "type": "integer", "minimum": 0, "default": 0, "description": "First byte" },
                "max_bytes": {
                    "type": "integer", "minimum": 1, "maximum": FILE_BYTES_MAX, "default": OUTPUT_BYTES_MAX,
                },
            }),
            &["sandbox", "path"],
        ),
        tool(
            "write_file",
            &format!(
                "Write a file in a sandbox, in place of one that exists; its directories are made. At most \
                 {FILE_BYTES_MAX} bytes."
            ),
            ToolAnnotations::new().destructive(true).idempotent(true),
            json!({
                "sandbox": sandbox,
                "path": path("Absolute path of the file"),
                "content": { "type": "string" },
                "is_base64": {
                    "type": "boolean", "default": false,
                    "description": "Whether content is base64, for files that are not text",
                },
                "mode": {
                    "type": "string", "pattern": "^[0-7]{3,4}$",
                    "description": "Permissions in octal, such as 755",
                },
            }),
            &["sandbox", "path", "content"],
        ),
        tool(
            "list_files",
            &format!("List a directory of a sandbox: at most {ENTRIES_MAX} entries, by name."),
            ToolAnnotations::new().read_only(true),
            json!({ "sandbox": sandbox, "path": path("Absolute path of the directory") }),
            &["sandbox", "path"],
        ),
        tool(
            "fork_sandbox",
            "Make copies of a sandbox, each with all its files and running programs as they are now, and wait until they \
             are ready. Returns their names. Good for trying several ways from one state. Where running programs cannot \
             be copied, such as one with an open connection, it fails and says why; `disk_only` copies the files alone. \
             Each copy stays until it is deleted.",
            ToolAnnotations::new().destructive(false).idempotent(false),
            json!({
                "sandbox": sandbox,
                "count": {
                    "type": "integer", "minimum": 1, "maximum": COUNT_MAX, "default": 1,
                    "description": "How many copies",
                },
                "disk_only": {
                    "type": "boolean", "default": false,
                    "description": "Copy the files alone, and no running program",
                },
            }),
            &["sandbox"],
        ),
        tool(
            "list_sandboxes",
            "List the sandboxes there are, with their status.",
            ToolAnnotations::new().read_only(true),
            json!({}),
            &[],
        ),
        tool(
            "delete_sandbox",
            "Delete a sandbox, everything that runs in it and every file in it. This cannot be undone.",
            ToolAnnotations::new().destructive(true).idempotent(true),
            json!({ "sandbox": sandbox }),
            &["sandbox"],
        ),
    ]
}

fn tool(
    name: &'static str,
    description: &str,
    annotations: ToolAnnotations,
    properties: Value,
    required: &[&str],
) -> Tool {
    let mut schema = JsonObject::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), properties);
    schema.insert("required".to_owned(), json!(required));
    schema.insert("additionalProperties".to_owned(), json!(false));
    Tool::new(name, description.to_owned(), schema).with_annotations(annotations)
}
