//! `tram mcp [--listen ADDRESS]`: sandboxes as tools of the Model Context Protocol.
//!
//! An agent starts it and speaks over standard input and output, or it listens for agents over streamable HTTP (`http`).
//! The protocol is the `rmcp` crate's; what the tools are is in `schema`, what they do in `tools`. The server keeps
//! nothing: each call is one of the API's, with the token of the context.

mod http;
mod schema;
mod stdout;
mod tools;

use std::{net::SocketAddr, sync::Arc};

use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt as _,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
        ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
    },
    service::RequestContext,
};

use crate::{EXIT_SUCCESS, client::Client, error::Error, session::Session};

/// What an agent is told before it sees the tools.
const INSTRUCTIONS: &str = "Isolated Linux computers (sandboxes) on the user's own server. Make one with \
create_sandbox, work in it with run, write_file, read_file and list_files, copy it with fork_sandbox, and delete it with \
delete_sandbox when it is no longer needed: it uses memory until then. Files and processes last as long as the sandbox.";

/// Arguments of `mcp`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Listen here for streamable HTTP at /mcp, instead of standard input and output
    ///
    /// Anywhere but on loopback, clients must show the token in TRAM_MCP_TOKEN.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Another name that clients reach it by; several can be given
    ///
    /// Requests for other hosts are refused, so that no web page can reach it under a name of its own.
    #[arg(long, value_name = "HOST", requires = "listen")]
    pub allow_host: Vec<String>,
}

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<u8, Error> {
    let server = Server {
        client: session.client()?,
    };
    if let Some(address) = arguments.listen {
        http::serve(&session, server, address, arguments.allow_host).await?;
        return Ok(EXIT_SUCCESS);
    }
    let output = stdout::Output(session.host.stdout.clone());
    let failed =
        |error: &dyn std::fmt::Display| Error::Exec(format!("the agent's connection broke: {error}"));
    let running = match server.serve((session.host.stdin, output)).await {
        Ok(running) => running,
        // The agent left before it said anything, which is its right.
        Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => return Ok(EXIT_SUCCESS),
        Err(error) => return Err(failed(&error)),
    };
    running.waiting().await.map_err(|error| failed(&error))?;
    Ok(EXIT_SUCCESS)
}

/// Answers one agent, or many.
#[derive(Debug, Clone)]
struct Server {
    client: Client,
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(ServerCapabilities::builder().enable_tools().build());
        info.server_info = Implementation::new("tramontane", env!("CARGO_PKG_VERSION"));
        info.instructions = Some(INSTRUCTIONS.to_owned());
        info
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(schema::tools()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let outcome = tokio::select! {
            outcome = Box::pin(tools::call(&self.client, &request.name, arguments)) => outcome,
            () = context.ct.cancelled() => Err("cancelled".to_owned()),
        };
        let result = match outcome {
            Ok(value) => {
                let mut result = CallToolResult::success(vec![ContentBlock::text(value.to_string())]);
                result.structured_content = Some(value);
                result
            }
            // A failure is an answer that the agent reads, not a fault of the protocol.
            Err(problem) => CallToolResult::error(vec![ContentBlock::text(problem)]),
        };
        Ok(result.into())
    }
}

/// A server that each connection gets a copy of.
fn factory(server: Server) -> impl Fn() -> Result<Server, std::io::Error> + Send + Sync + 'static {
    let server = Arc::new(server);
    move || Ok(Server::clone(&server))
}
