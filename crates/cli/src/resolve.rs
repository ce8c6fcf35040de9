//! From what people type to what the API knows: names, `app/name`, ids and the first eight characters of ids.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    client::Client,
    error::Error,
    suggest,
    view::{SHORT_ID_CHARACTERS, text},
};

/// A service and the name of its app.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) app_id: String,
    pub(crate) app: String,
    pub(crate) value: Value,
}

impl Service {
    /// `app/name`.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.app, self.name)
    }
}

/// Whether `given` is `id` or enough of its beginning, with or without dashes.
pub(crate) fn names_id(given: &str, id: &str) -> bool {
    let dashless = |text: &str| text.replace('-', "").to_ascii_lowercase();
    let (given, id) = (dashless(given), dashless(id));
    given.len() >= SHORT_ID_CHARACTERS && id.starts_with(&given)
}

/// Names of apps by id.
pub(crate) async fn app_names(client: &Client) -> Result<BTreeMap<String, String>, Error> {
    let apps = client.list("/v1/apps", "apps", &[], None).await?;
    Ok(apps
        .iter()
        .map(|app| (text(app, "id").to_owned(), text(app, "name").to_owned()))
        .collect())
}

/// Every service with the name of its app.
pub(crate) async fn services(client: &Client) -> Result<Vec<Service>, Error> {
    let apps = app_names(client).await?;
    let services = client.list("/v1/services", "services", &[], None).await?;
    Ok(services
        .into_iter()
        .map(|value| {
            let app_id = text(&value, "app_id").to_owned();
            Service {
                id: text(&value, "id").to_owned(),
                name: text(&value, "name").to_owned(),
                app: apps.get(&app_id).cloned().unwrap_or_else(|| app_id.clone()),
                app_id,
                value,
            }
        })
        .collect())
}

/// The service that `given` names.
pub(crate) async fn service(client: &Client, given: &str) -> Result<Service, Error> {
    let all = services(client).await?;
    let named: Vec<&Service> = match given.split_once('/') {
        Some((app, name)) => all
            .iter()
            .filter(|service| (service.app == app || service.app_id == app) && service.name == name)
            .collect(),
        None => all.iter().filter(|service| service.name == given).collect(),
    };
    let matches = if named.is_empty() {
        all.iter()
            .filter(|service| names_id(given, &service.id))
            .collect()
    } else {
        named
    };
    match matches.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let paths: Vec<String> = all.iter().map(Service::path).collect();
            let near = if given.contains('/') {
                suggest::nearest(given, paths.iter().map(String::as_str))
            } else {
                suggest::nearest(given, all.iter().map(|service| service.name.as_str()))
            };
            Err(Error::NotFound {
                kind: "service",
                name: given.to_owned(),
                near: near.map(str::to_owned),
                list: "tram services list",
            })
        }
        several => Err(Error::Ambiguous {
            name: given.to_owned(),
            candidates: several
                .iter()
                .map(|service| format!("`{}` ({})", service.path(), crate::view::short(&service.id)))
                .collect(),
        }),
    }
}

/// Something with an id and a name: which list it is in, and what it is called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// What a message calls it.
    pub(crate) noun: &'static str,
    /// The list's path.
    pub(crate) path: &'static str,
    /// The list's member.
    pub(crate) member: &'static str,
    /// The command that shows the list.
    pub(crate) list: &'static str,
}

/// Apps.
pub(crate) const APP: Kind = Kind {
    noun: "app",
    path: "/v1/apps",
    member: "apps",
    list: "tram apps list",
};
/// Secrets.
pub(crate) const SECRET: Kind = Kind {
    noun: "secret",
    path: "/v1/secrets",
    member: "secrets",
    list: "tram secrets list",
};
/// Domains.
pub(crate) const DOMAIN: Kind = Kind {
    noun: "domain",
    path: "/v1/domains",
    member: "domains",
    list: "tram domains list",
};
/// Deployments; they have no names.
pub(crate) const DEPLOYMENT: Kind = Kind {
    noun: "deployment",
    path: "/v1/deployments",
    member: "deployments",
    list: "tram deployments list",
};
/// Instances; they have no names.
pub(crate) const INSTANCE: Kind = Kind {
    noun: "instance",
    path: "/v1/instances",
    member: "instances",
    list: "tram instances list",
};

/// Snapshots of instances. Their names need not be unique: the newest is meant.
pub(crate) const INSTANCE_SNAPSHOT: Kind = Kind {
    noun: "snapshot",
    path: "/v1/instance_snapshots",
    member: "instance_snapshots",
    list: "tram snapshots ls",
};
/// Service pools.
pub(crate) const POOL: Kind = Kind {
    noun: "pool",
    path: "/v1/service_pools",
    member: "service_pools",
    list: "tram pools ls",
};
/// API tokens.
pub(crate) const TOKEN: Kind = Kind {
    noun: "token",
    path: "/v1/credentials",
    member: "credentials",
    list: "tram tokens list",
};
/// Volumes.
pub(crate) const VOLUME: Kind = Kind {
    noun: "volume",
    path: "/v1/volumes",
    member: "volumes",
    list: "tram volumes ls",
};
/// Snapshots of volumes.
pub(crate) const VOLUME_SNAPSHOT: Kind = Kind {
    noun: "snapshot of a volume",
    path: "/v1/snapshots",
    member: "snapshots",
    list: "tram volumes snapshots ls",
};

/// The thing of this kind that `given` names.
pub(crate) async fn one(client: &Client, kind: Kind, given: &str) -> Result<Value, Error> {
    let all = client.list(kind.path, kind.member, &[], None).await?;
    if let Some(named) = all
        .iter()
        .find(|item| !given.is_empty() && text(item, "name") == given)
    {
        return Ok(named.clone());
    }
    let matches: Vec<&Value> = all
        .iter()
        .filter(|item| names_id(given, text(item, "id")))
        .collect();
    match matches.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Error::NotFound {
            kind: kind.noun,
            name: given.to_owned(),
            near: suggest::nearest(given, all.iter().map(|item| text(item, "name"))).map(str::to_owned),
            list: kind.list,
        }),
        several => Err(Error::Ambiguous {
            name: given.to_owned(),
            candidates: several.iter().map(|item| text(item, "id").to_owned()).collect(),
        }),
    }
}

/// The id of the thing of this kind that `given` names; a whole id is taken at its word.
pub(crate) async fn id(client: &Client, kind: Kind, given: &str) -> Result<String, Error> {
    if uuid::Uuid::try_parse(given).is_ok_and(|_| given.contains('-')) {
        return Ok(given.to_ascii_lowercase());
    }
    Ok(text(&one(client, kind, given).await?, "id").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_may_be_cut_after_eight_characters() {
        let id = "0d3f2a91-77aa-4c0e-9d55-1f2e3d4c5b6a";
        for given in ["0d3f2a91", "0d3f2a91-77", "0d3f2a9177aa", "0D3F2A91", id] {
            assert!(names_id(given, id), "{given}");
        }
        for given in ["0d3f2a9", "", "1d3f2a91", "hello"] {
            assert!(!names_id(given, id), "{given}");
        }
    }
}
