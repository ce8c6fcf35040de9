//! Logs, metrics and commands.

use std::collections::BTreeMap;

use tram_types::Timestamp;

tram_types::message! {
    /// One line of a log.
    pub struct LogEntry {
        pub msg: String,
        pub created_at: Option<Timestamp>,
        pub labels: BTreeMap<String, serde_json::Value>,
    }

    /// The answer of `query logs`.
    pub struct QueryLogsReply {
        pub data: Vec<LogEntry>,
        pub pagination: Option<QueryLogsReplyPagination>,
    }

    /// Where the next page begins.
    pub struct QueryLogsReplyPagination {
        pub has_more: bool,
        pub next_start: Option<Timestamp>,
        pub next_end: Option<Timestamp>,
    }

    /// The answer of `get metrics`.
    pub struct GetMetricsReply {
        pub metrics: Vec<GetMetricsReplyMetric>,
    }

    /// One series.
    #[schema(as = GetMetricsReply::Metric)]
    pub struct GetMetricsReplyMetric {
        pub labels: BTreeMap<String, String>,
        pub samples: Vec<Sample>,
    }

    /// One point of a series.
    pub struct Sample {
        pub timestamp: String,
        pub value: f64,
    }

    /// Bytes of a command's stream, base64.
    #[schema(as = ExecCommandIO)]
    pub struct ExecCommandIo {
        pub data: String,
        pub close: bool,
    }

    /// What comes from a running command.
    pub struct ExecCommandReply {
        pub stdout: Option<ExecCommandIo>,
        pub stderr: Option<ExecCommandIo>,
        pub exited: bool,
        pub exit_code: i64,
    }

    /// The end of a command, or why it could not run.
    pub struct StreamResultOfExecCommandReply {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub result: Option<ExecCommandReply>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub error: Option<RpcStatus>,
    }

    /// A line of a log that is followed, or why following ended.
    pub struct StreamResultOfLogEntry {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub result: Option<LogEntry>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub error: Option<RpcStatus>,
    }

    /// What went wrong, as streams tell it.
    #[schema(as = google::rpc::Status)]
    pub struct RpcStatus {
        pub code: i64,
        pub message: String,
        pub details: Vec<BTreeMap<String, serde_json::Value>>,
    }

    /// Size of a terminal, in characters.
    #[schema(as = ExecCommandRequest::TerminalSize)]
    pub struct ExecCommandRequestTerminalSize {
        pub height: i64,
        pub width: i64,
    }
}
