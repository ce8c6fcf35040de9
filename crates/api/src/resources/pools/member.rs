//! What a service of a pool is made of: an app of its own, names, and a secret nobody else has.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngExt;
use tram_store::{
    NewPoolMember,
    intent::{NewApp, NewService},
    record::{ManualScaling, ServicePool},
};
use tram_types::{
    AppId, ServiceId,
    definition::{DeploymentDefinition, DeploymentEnv},
    names::SERVICE_NAME_MAX_CHARACTERS,
    status::{AppStatus, DefinitionType, DeploymentStatus, TriggerType},
};

use crate::{
    definition::{self, Trigger},
    error::Error,
    resources::domains,
    state::ApiState,
    views::part,
};

/// The variable that the executor of a sandbox takes its secret from.
const SANDBOX_SECRET: &str = "SANDBOX_SECRET";
/// Random bytes of a minted secret: 43 characters, as official clients make them.
const SANDBOX_SECRET_BYTES: usize = 32;

/// One more service for a pool, as its definition is now.
///
/// # Errors
/// [`Error::Invalid`] when the definition breaks a rule by now, such as a secret that is gone; those of the store.
pub async fn pool_member(api: &ApiState, pool: &ServicePool) -> Result<NewPoolMember, Error> {
    let organization = pool.organization_id;
    let name = member_name(&pool.name);
    let mut definition = fitted(part(&pool.definition), &name);
    let wrong = definition::violations(api, organization, None, None, &definition).await?;
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    mint_secret(&mut definition);
    let trigger = Trigger {
        kind: TriggerType::Unknown,
        created_by: pool.created_by.clone(),
        status: DeploymentStatus::Pending,
        skip_build: false,
    };
    let app = NewApp {
        id: AppId::random(),
        organization_id: organization,
        name: name.clone(),
        status: AppStatus::Healthy,
        delete_when_empty: true,
    };
    let most = |region: &String| definition.effective_scale(region).min.max(1);
    let awake = definition
        .regions
        .iter()
        .map(|region| ManualScaling {
            scopes: vec![format!("region:{region}")],
            instances: most(region),
            keeps_awake: true,
        })
        .collect();
    Ok(NewPoolMember {
        generation: pool.generation,
        domain: domains::auto_assigned(api, organization, app.id, &name).await?,
        service: NewService {
            id: ServiceId::random(),
            organization_id: organization,
            project_id: None,
            app_id: app.id,
            name,
            kind: definition.r#type.into(),
            // A pool's definition has no clocks of its own; its owner may set them on what was taken.
            delete_after_create_seconds: 0,
            delete_after_sleep_seconds: 0,
            deployment: definition::deployment(api, &definition, trigger, None)?,
            proxy_ports: definition::proxied_ports(&definition),
        },
        app,
        awake,
    })
}

/// What a member called `name` is to run. Official clients ask for sleep with every pool, of workers too, which nothing
/// could wake: these stay awake.
pub(super) fn fitted(mut definition: DeploymentDefinition, name: &str) -> DeploymentDefinition {
    name.clone_into(&mut definition.name);
    if definition.r#type == DefinitionType::Worker {
        for scaling in definition.scalings.iter_mut().filter(|scaling| scaling.min == 0) {
            scaling.min = 1;
            scaling.targets.retain(|target| target.sleep_idle_delay.is_none());
        }
    }
    definition
}

/// A name for an app and its service: the pool's as far as it goes, and 64 random bits.
pub(super) fn member_name(pool: &str) -> String {
    let unique = format!("{:016x}", rand::rng().random::<u64>());
    let safe: String = pool
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(SERVICE_NAME_MAX_CHARACTERS - unique.len() - 1)
        .collect();
    match safe.trim_matches('-') {
        "" => format!("pool-{unique}"),
        head => format!("{head}-{unique}"),
    }
}

/// Gives a sandbox a secret of its own unless the definition brings one.
fn mint_secret(definition: &mut DeploymentDefinition) {
    let brings = definition.env.iter().any(|entry| entry.key == SANDBOX_SECRET);
    if definition.r#type != DefinitionType::Sandbox || brings {
        return;
    }
    let mut bytes = [0_u8; SANDBOX_SECRET_BYTES];
    rand::rng().fill(&mut bytes);
    definition.env.push(DeploymentEnv {
        key: SANDBOX_SECRET.to_owned(),
        value: Some(URL_SAFE_NO_PAD.encode(bytes)),
        ..DeploymentEnv::default()
    });
}

#[cfg(test)]
mod tests {
    use tram_types::names::{check_app_name, check_service_name};

    use super::*;

    #[test]
    fn names_of_members_are_valid_whatever_the_pool_is_called() {
        for pool in ["agents", "Älteste Freunde", "--", "x", &"long ".repeat(20)] {
            let name = member_name(pool);
            assert_eq!(check_app_name(&name), Ok(()), "{name}");
            assert_eq!(check_service_name(&name), Ok(()), "{name}");
            assert_ne!(member_name(pool), name);
        }
    }

    #[test]
    fn workers_do_not_sleep_and_others_may() {
        let scalings = r#""scalings":[{"min":0,"max":1,"targets":[{"sleep_idle_delay":{"value":300}}]}]"#;
        let least = |kind: &str| {
            let definition = serde_json::from_str(&format!(r#"{{"type":"{kind}",{scalings}}}"#)).unwrap();
            let scaling = fitted(definition, "one").scalings.remove(0);
            (scaling.min, scaling.targets.len())
        };
        assert_eq!(least("WORKER"), (1, 0));
        assert_eq!(least("SANDBOX"), (0, 1));
    }

    #[test]
    fn sandboxes_get_a_secret_each_and_keep_one_they_bring() {
        let secret = |json: &str| {
            let mut definition: DeploymentDefinition = serde_json::from_str(json).unwrap();
            mint_secret(&mut definition);
            let entry = definition
                .env
                .into_iter()
                .find(|entry| entry.key == SANDBOX_SECRET);
            entry.and_then(|entry| entry.value)
        };
        let minted = secret(r#"{"type":"SANDBOX"}"#).unwrap();
        assert_eq!(minted.len(), 43);
        assert_ne!(secret(r#"{"type":"SANDBOX"}"#), Some(minted));
        let brought = r#"{"type":"SANDBOX","env":[{"key":"SANDBOX_SECRET","value":"mine"}]}"#;
        assert_eq!(secret(brought).as_deref(), Some("mine"));
        assert_eq!(secret(r#"{"type":"WEB"}"#), None);
    }
}
