//! What questions to models cost, as clients see it.

use std::collections::BTreeMap;

use tram_store::{By, TokenUsage, filter};
use tram_types::{FieldViolation, OrganizationId};

use crate::{
    error::Error, resources::quotas::every, state::ApiState, views::count, wire::summary::TokenUsage as Shown,
};

/// What `by` means: all of it when nothing is said. Several are given by several `by`, or with commas between.
pub(super) fn by(given: &[String]) -> Result<Vec<By>, Error> {
    let mut found = Vec::new();
    for word in given.iter().flat_map(|words| words.split(',')) {
        let by = match word.trim() {
            "service" => By::Service,
            "model" => By::Model,
            "credential" => By::Credential,
            "project" => By::Project,
            _ => {
                return Err(Error::InvalidParameters(vec![FieldViolation::new(
                    "by",
                    "must be service, model, credential or project, or several of them with commas between",
                )]));
            }
        };
        if !found.contains(&by) {
            found.push(by);
        }
    }
    if found.is_empty() {
        found.extend(By::ALL);
    }
    Ok(found)
}

/// Names of projects and tokens by their id, where they are asked for.
pub(super) struct Names {
    projects: BTreeMap<String, String>,
    credentials: BTreeMap<String, String>,
}

impl Names {
    pub(super) async fn read(api: &ApiState, id: OrganizationId, by: &[By]) -> Result<Self, Error> {
        let store = &api.store;
        let mut names = Self {
            projects: BTreeMap::new(),
            credentials: BTreeMap::new(),
        };
        if by.contains(&By::Project) {
            let all =
                every(
                    |page| async move { store.list_projects(id, &filter::Projects::default(), page).await },
                )
                .await?;
            let named = all.into_iter().map(|it| (it.id.to_string(), it.name));
            names.projects = named.collect();
        }
        if by.contains(&By::Credential) {
            let all = every(|page| async move {
                store
                    .list_credentials(id, &filter::Credentials::default(), page)
                    .await
            })
            .await?;
            let named = all.into_iter().map(|it| (it.id.to_string(), it.name));
            names.credentials = named.collect();
        }
        Ok(names)
    }
}

/// One sum. Names of what is gone are empty.
pub(super) fn shown(sum: TokenUsage, services: &super::Names, names: &Names) -> Shown {
    let id = |id: Option<String>| id.unwrap_or_default();
    let of = |names: &BTreeMap<String, String>, id: &str| names.get(id).cloned().unwrap_or_default();
    let app_id = id(sum.app.map(|app| app.to_string()));
    let service_id = id(sum.service.map(|service| service.to_string()));
    let project_id = id(sum.project.map(|project| project.to_string()));
    let credential_id = id(sum.credential.map(|credential| credential.to_string()));
    let tokens = sum.tokens;
    Shown {
        app_name: of(&services.apps, &app_id),
        app_id,
        service_name: of(&services.services, &service_id),
        service_id,
        model: sum.model.unwrap_or_default(),
        project_name: of(&names.projects, &project_id),
        project_id,
        credential_name: of(&names.credentials, &credential_id),
        credential_id,
        requests: count(tokens.requests),
        failed_requests: count(tokens.failed_requests),
        prompt_tokens: count(tokens.prompt_tokens),
        completion_tokens: count(tokens.completion_tokens),
        cached_tokens: count(tokens.cached_tokens),
        queue_ms: count(tokens.queue_ms),
        mean_first_token_ms: count(tokens.ttft_ms.checked_div(tokens.answered_requests).unwrap_or(0)),
        duration_ms: count(tokens.duration_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_usage_is_told_apart_by_is_words() {
        let by = |words: &[&str]| by(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(by(&[]).unwrap(), By::ALL);
        assert_eq!(by(&["model,service", "model"]).unwrap(), [By::Model, By::Service]);
        assert!(by(&["colour"]).is_err());
        assert!(by(&["model,"]).is_err());
    }
}
