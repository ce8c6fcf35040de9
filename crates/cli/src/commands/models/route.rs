//! `tram models route list|set|remove`: names that lead to models.

use serde_json::json;

use crate::{
    error::Error,
    session::Session,
    view::{acted, list, number, take, text, texts},
};

/// What to do with routes.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the routes
    #[command(visible_alias = "ls")]
    List,
    /// Set a route, in place of what it was
    Set {
        /// What requests give as `model`
        #[arg(value_name = "NAME")]
        name: String,
        /// A service that serves a model and its weight beside the others, 1 when nothing is said; can be given several
        /// times
        #[arg(long = "to", value_name = "MODEL[=WEIGHT]", required = true, value_parser = target)]
        targets: Vec<(String, u32)>,
        /// A service that is asked when the one that was drawn refuses or fails; can be given several times
        #[arg(long = "fallback", value_name = "MODEL")]
        fallbacks: Vec<String>,
        /// Lead to services of these regions alone; can be given several times
        #[arg(long = "region", value_name = "REGION")]
        regions: Vec<String>,
    },
    /// Take a route away
    #[command(visible_alias = "rm")]
    Remove {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Reads `MODEL` or `MODEL=WEIGHT`.
fn target(text: &str) -> Result<(String, u32), String> {
    let (model, weight) = text.rsplit_once('=').unwrap_or((text, "1"));
    match weight.parse() {
        Ok(weight @ 1..) if !model.is_empty() => Ok((model.to_owned(), weight)),
        _ => Err("give a model and its weight, a whole number above 0: MODEL=WEIGHT".to_owned()),
    }
}

pub(super) async fn run(session: &Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    match action {
        Action::List => {
            let reply = client.get("/v1/model_routes", &[]).await?;
            let header = ["NAME", "TO", "FALLBACKS", "REGIONS"];
            session
                .printer
                .list(list(&reply, "routes"), "routes", &header, |route| {
                    let targets = list(route, "targets").iter();
                    let targets = targets.map(|to| format!("{}={}", text(to, "model"), number(to, "weight")));
                    vec![
                        text(route, "name").to_owned(),
                        targets.collect::<Vec<_>>().join(", "),
                        texts(route, "fallbacks").join(", "),
                        texts(route, "regions").join(", "),
                    ]
                })
        }
        Action::Set {
            name,
            targets,
            fallbacks,
            regions,
        } => {
            let to = |(model, weight): &(String, u32)| json!({ "model": model, "weight": weight });
            let body = json!({
                "targets": targets.iter().map(to).collect::<Vec<_>>(),
                "fallbacks": fallbacks,
                "regions": regions,
            });
            let mut reply = client.put(&format!("/v1/model_routes/{name}"), &body).await?;
            let said = format!("`{name}` leads to {} models", targets.len() + fallbacks.len());
            session.printer.done(&take(&mut reply, "route"), said)
        }
        Action::Remove { name } => {
            client.delete(&format!("/v1/model_routes/{name}")).await?;
            session.printer.done(
                &acted("remove", &name, &name),
                format!("took route `{name}` away"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_read_off_the_end() {
        assert_eq!(target("chat"), Ok(("chat".to_owned(), 1)));
        assert_eq!(target("a/chat:tone=9"), Ok(("a/chat:tone".to_owned(), 9)));
        for wrong in ["chat=0", "chat=x", "=1", "chat=-1"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }
}
