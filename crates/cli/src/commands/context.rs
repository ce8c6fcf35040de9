//! `tram context list|use|current|delete`.

use serde_json::json;

use crate::{
    context::Contexts,
    error::Error,
    printer::{columns, pairs},
    session::Session,
};

/// What to do with contexts.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the contexts; a star marks the current one
    List,
    /// Use a context from now on
    Use {
        /// Its name
        name: String,
    },
    /// Show which server the commands speak to, and why
    Current,
    /// Forget a context and its token
    Delete {
        /// Its name
        name: String,
    },
}

pub(crate) fn run(session: &Session, action: Action) -> Result<(), Error> {
    let printer = &session.printer;
    if let Action::Current = action {
        let resolved = session.resolve()?;
        let has_token = !resolved.context.token.is_empty();
        let value = json!({
            "context": resolved.origin,
            "url": resolved.context.url,
            "has_token": has_token,
        });
        return printer.value(&value, || {
            pairs(&[
                ("context", resolved.origin.clone()),
                ("url", resolved.context.url.clone()),
                ("token", if has_token { "yes" } else { "none" }.to_owned()),
            ])
        });
    }
    let path = session.contexts_path()?;
    let mut contexts = Contexts::read(&path)?;
    match action {
        Action::List | Action::Current => {
            if contexts.contexts.is_empty() {
                printer.note("no contexts; add one with `tram login`");
            }
            let value = contexts
                .contexts
                .iter()
                .map(|(name, context)| {
                    json!({ "name": name, "url": context.url, "current": *name == contexts.current })
                })
                .collect();
            if contexts.contexts.is_empty() && printer.output() == crate::Output::Table {
                return Ok(());
            }
            printer.value(&value, || {
                let rows = contexts.contexts.iter().map(|(name, context)| {
                    let mark = if *name == contexts.current { "*" } else { "" };
                    vec![mark.to_owned(), name.clone(), context.url.clone()]
                });
                columns(Some(&["", "NAME", "URL"]), rows)
            })
        }
        Action::Use { name } => {
            contexts.named(&name)?;
            contexts.current = name;
            contexts.write(&path)?;
            printer.done(
                &json!({ "name": contexts.current, "action": "use" }),
                format_args!("the current context is now `{}`", contexts.current),
            )
        }
        Action::Delete { name } => {
            contexts.named(&name)?;
            contexts.contexts.remove(&name);
            if contexts.current == name {
                contexts.current.clear();
            }
            contexts.write(&path)?;
            printer.done(
                &json!({ "name": name, "action": "delete" }),
                format_args!("deleted context `{name}`"),
            )
        }
    }
}
