//! `tram events SERVICE`: what happened to it, oldest first.

use crate::{age::age, error::Error, resolve, session::Session, view::text};

/// How many events are shown when nothing says otherwise.
const EVENTS_ITEMS: usize = 50;

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Its name, app/name, its id, or at least eight characters of its id
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Show at most so many, the newest ones
    #[arg(long, value_name = "N", default_value_t = EVENTS_ITEMS)]
    pub limit: usize,
}

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<(), Error> {
    let client = session.client()?;
    let service = resolve::service(&client, &arguments.service).await?;
    let query = [("service_id", service.id.as_str()), ("order", "desc")];
    let mut events = client
        .list("/v1/service_events", "events", &query, Some(arguments.limit))
        .await?;
    events.reverse();
    session
        .printer
        .list(&events, "events", &["AGE", "TYPE", "MESSAGE"], |event| {
            vec![
                age(text(event, "when"), session.now()),
                text(event, "type").to_owned(),
                text(event, "message").to_owned(),
            ]
        })
}
