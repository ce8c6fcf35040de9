//! `tram version`: of this program.

use serde_json::json;

use crate::{error::Error, printer::pairs, session::Session};

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn run(session: &Session) -> Result<(), Error> {
    session.printer.value(&json!({ "version": VERSION }), || {
        pairs(&[("tram", VERSION.to_owned())])
    })
}
