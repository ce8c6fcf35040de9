//! `tram scale SERVICE N`, or `--min` and `--max`, or `--auto`.
//!
//! A number is the API's manual scale: it holds at once and makes no deployment. Bounds belong to the definition:
//! changing them makes a deployment.

use serde_json::{Value, json};

use super::services::latest_definition;
use crate::{
    error::Error,
    resolve,
    session::Session,
    view::{acted, take, text},
};

/// Arguments of `scale`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("amount").required(true).multiple(true))]
pub struct Arguments {
    /// Its name, app/name, its id, or at least eight characters of its id
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Run exactly so many instances, whatever the definition says
    #[arg(value_name = "N", group = "amount", conflicts_with_all = ["min", "max", "auto"], value_parser = clap::value_parser!(u16).range(1..=20))]
    pub instances: Option<u16>,
    /// Fewest instances; 0 lets the service sleep
    #[arg(long, value_name = "N", group = "amount", conflicts_with = "auto")]
    pub min: Option<u16>,
    /// Most instances; needs a target to scale on when it is more than --min: see `tram deploy --scale-on`
    #[arg(long, value_name = "N", group = "amount", conflicts_with = "auto")]
    pub max: Option<u16>,
    /// Go back from an exact number to what the definition says
    #[arg(long, group = "amount")]
    pub auto: bool,
}

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<(), Error> {
    let client = session.client()?;
    let service = resolve::service(&client, &arguments.service).await?;
    let path = service.path();
    let scale = format!("/v1/services/{}/scale", service.id);
    if arguments.auto {
        client.delete(&scale).await?;
        session.printer.done(
            &acted("scale", &service.id, &service.name),
            format_args!("service `{path}` scales as its definition says"),
        )
    } else if let Some(instances) = arguments.instances {
        let body = json!({ "scalings": [{ "scopes": [], "instances": instances }] });
        client.put(&scale, &body).await?;
        let mut scaled = acted("scale", &service.id, &service.name);
        if let Some(scaled) = scaled.as_object_mut() {
            scaled.insert("instances".to_owned(), json!(instances));
        }
        session.printer.done(
            &scaled,
            format_args!("scaling service `{path}` to {}", counted(instances)),
        )
    } else {
        let mut reply = client.get(&format!("/v1/services/{}", service.id), &[]).await?;
        let current = take(&mut reply, "service");
        let mut definition = latest_definition(&client, &current).await?;
        let bounds = bound(&mut definition, arguments.min, arguments.max)?;
        let mut reply = client
            .put(
                &format!("/v1/services/{}", service.id),
                &json!({ "definition": definition }),
            )
            .await?;
        let updated = take(&mut reply, "service");
        session.printer.done(
            &updated,
            format_args!(
                "scaling service `{path}` between {} and {}; deployment {}",
                bounds.0,
                counted(bounds.1),
                crate::view::short(text(&updated, "latest_deployment_id"))
            ),
        )
    }
}

fn counted(instances: u16) -> String {
    format!("{instances} instance{}", if instances == 1 { "" } else { "s" })
}

/// Writes the bounds into every scaling of a definition, and gives them back completed.
fn bound(definition: &mut Value, min: Option<u16>, max: Option<u16>) -> Result<(u16, u16), Error> {
    let empty = || {
        Error::input(
            "the service has no definition to change",
            "deploy it first with `tram deploy`",
        )
    };
    let definition = definition.as_object_mut().ok_or_else(empty)?;
    let scalings = definition.entry("scalings").or_insert_with(|| json!([]));
    if scalings.as_array().is_none_or(Vec::is_empty) {
        *scalings = json!([{ "min": 1, "max": 1, "targets": [] }]);
    }
    let mut bounds = (1, 1);
    for scaling in scalings.as_array_mut().into_iter().flatten() {
        let now = |member| u16::try_from(crate::view::number(scaling, member)).unwrap_or(1);
        let (low, high) = (now("min"), now("max"));
        bounds = match (min, max) {
            (Some(min), Some(max)) if min > max => {
                return Err(Error::input(
                    format!("--min {min} is more than --max {max}"),
                    "give --min the smaller number",
                ));
            }
            (Some(min), Some(max)) => (min, max),
            (Some(min), None) => (min, high.max(min)),
            (None, Some(max)) => (low.min(max), max),
            (None, None) => (low, high),
        };
        if let Some(scaling) = scaling.as_object_mut() {
            scaling.insert("min".to_owned(), json!(bounds.0));
            scaling.insert("max".to_owned(), json!(bounds.1));
            if bounds.0 > 0 {
                // Only a service that may reach zero has a time to sleep after.
                if let Some(targets) = scaling.get_mut("targets").and_then(Value::as_array_mut) {
                    targets.retain(|target| target.get("sleep_idle_delay").is_none());
                }
            }
        }
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_bound_follows_the_given_one() {
        let scaled = |min, max| {
            let mut definition = json!({ "scalings": [{ "min": 0, "max": 1, "targets": [
                { "sleep_idle_delay": { "deep_sleep_value": 60 } }, { "average_cpu": { "value": 80 } }] }] });
            bound(&mut definition, min, max).map(|bounds| (bounds, definition["scalings"][0].clone()))
        };
        assert_eq!(
            scaled(Some(3), None).unwrap(),
            (
                (3, 3),
                json!({ "min": 3, "max": 3, "targets": [{ "average_cpu": { "value": 80 } }] })
            )
        );
        assert_eq!(scaled(None, Some(5)).unwrap().0, (0, 5));
        assert_eq!(
            scaled(Some(3), Some(2)).unwrap_err().to_string(),
            "--min 3 is more than --max 2"
        );
        assert!(bound(&mut Value::Null, Some(1), None).is_err());
        let mut bare = json!({});
        assert_eq!(bound(&mut bare, Some(0), None).unwrap(), (0, 1));
        assert_eq!(bare["scalings"][0]["min"], 0);
    }
}
