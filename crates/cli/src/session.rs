//! What a command works with: the outside, the printer, and a client made when it is first needed.

use tram_types::Timestamp;

use crate::{
    client::Client,
    context::{self, Resolved},
    error::Error,
    host::Host,
    printer::Printer,
};

/// One run of one command.
pub(crate) struct Session {
    pub(crate) host: Host,
    pub(crate) printer: Printer,
    context: Option<String>,
}

impl Session {
    pub(crate) fn new(host: Host, printer: Printer, context: Option<String>) -> Self {
        Self {
            host,
            printer,
            context,
        }
    }

    /// Which server to speak to.
    pub(crate) fn resolve(&self) -> Result<Resolved, Error> {
        Ok(context::resolve(self.context.as_deref(), |name| {
            self.host.variable(name)
        })?)
    }

    /// A client of that server.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        let resolved = self.resolve()?;
        self.printer.detail(format_args!(
            "using {} (from {})",
            resolved.context.url, resolved.origin
        ));
        Ok(Client::new(
            &resolved.context.url,
            &resolved.context.token,
            &self.printer,
        )?)
    }

    /// The file of contexts.
    pub(crate) fn contexts_path(&self) -> Result<std::path::PathBuf, Error> {
        Ok(context::path(|name| self.host.variable(name))?)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.host.clock.now()
    }
}
