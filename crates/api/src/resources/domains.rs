//! Domains: auto-assigned ones come with their app, custom ones are added here and verified by the DNS, by a rule
//! that [`crate::DomainChecker`] knows.

use rand::RngExt;
use tram_store::{
    filter,
    intent::{DomainEdit, NewDomain},
};
use tram_types::{
    AppId, DomainId, FieldViolation, OrganizationId, ProjectId,
    names::{DNS_LABEL_MAX_CHARACTERS, auto_assigned_domain, check_domain_name, check_slug},
    routing::REQUEST_TIMEOUT_SECONDS,
    status::{DomainStatus, DomainType},
};

use super::organizations::project_of;
use crate::{
    definition::value,
    endpoint::{Call, Endpoint, delete, get, patch, post},
    error::Error,
    merge::masked,
    query::{Nothing, Page},
    state::{ApiState, DomainVerdict},
    views::{self, count, domain::LoadBalancer},
    wire::domain::{
        CreateDomain, CreateDomainReply, DeleteDomainReply, DomainLoadBalancerCloudflare, GetDomainReply,
        ListDomainsReply, RefreshDomainStatusReply, UpdateDomain, UpdateDomainReply,
    },
};

crate::query! {
    /// Which domains.
    struct Filters {
        page: Page,
        types: Vec<DomainType>,
        statuses: Vec<DomainStatus>,
        app_ids: Vec<AppId>,
        name: Option<String>,
        project_id: Option<ProjectId>,
        ids: Vec<DomainId>,
    }
    /// How to update.
    struct Update {
        update_mask: Option<String>,
        dry_run: bool,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/domains", "ListDomains", list),
        post("/v1/domains", "CreateDomain", create),
        get("/v1/domains/{id}", "GetDomain", read),
        patch("/v1/domains/{id}", "UpdateDomain", update),
        delete("/v1/domains/{id}", "DeleteDomain", remove),
        post("/v1/domains/{id}/refresh", "RefreshDomainStatus", refresh),
    ]
}

/// The domain that an app gets when it is made.
pub(crate) async fn auto_assigned(
    api: &ApiState,
    organization: OrganizationId,
    app: AppId,
    app_name: &str,
) -> Result<NewDomain, Error> {
    let organization_name = api.store.organization(organization).await?.name;
    let unique = rand::rng().random::<u32>();
    Ok(NewDomain {
        id: DomainId::random(),
        organization_id: organization,
        project_id: None,
        app_id: Some(app),
        name: auto_assigned_domain(
            &label(app_name),
            &label(&organization_name),
            unique,
            &api.settings.base_domain,
        ),
        kind: DomainType::Autoassigned,
        status: DomainStatus::Active,
        intended_cname: String::new(),
        load_balancer: value(&LoadBalancer {
            cloudflare: Some(DomainLoadBalancerCloudflare::default()),
            koyeb: None,
        })?,
    })
}

/// A name as a part of a host name.
fn label(name: &str) -> String {
    let safe: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    safe.trim_matches('-').to_owned()
}

async fn list(call: Call<Filters>) -> Result<ListDomainsReply, Error> {
    let query = call.query;
    let filter = filter::Domains {
        kinds: query.types,
        statuses: query.statuses,
        app_ids: query.app_ids,
        project_id: query.project_id.or(call.caller.project),
        name: query.name,
        ids: query.ids,
    };
    let page = query.page;
    let listed = call
        .api
        .store
        .list_domains(call.caller.organization, &filter, page.stored())
        .await?;
    Ok(ListDomainsReply {
        domains: listed
            .items
            .iter()
            .map(|domain| views::domain::domain(&call.api.settings, domain))
            .collect(),
        limit: page.limit,
        offset: page.offset,
        count: count(listed.count),
    })
}

async fn create(call: Call<Nothing, CreateDomain>) -> Result<CreateDomainReply, Error> {
    let project_id = project_of(&call, &call.body.project_id).await?;
    let body = &call.body;
    let organization = call.caller.organization;
    let mut wrong = Vec::new();
    let name = body.name.to_lowercase();
    if let Err(rule) = check_domain_name(&name) {
        wrong.push(FieldViolation::new("name", rule));
    } else if below(&name, &call.api.settings.base_domain) {
        wrong.push(FieldViolation::new(
            "name",
            format!(
                "names below `{}` are assigned by the platform: change the `subdomain` of an app's own domain",
                call.api.settings.base_domain
            ),
        ));
    }
    let seconds = body.koyeb.as_ref().map_or(0, |it| it.request_timeout_seconds);
    // 0 is what a client sends that means "unset".
    if seconds != 0 && !u32::try_from(seconds).is_ok_and(|given| REQUEST_TIMEOUT_SECONDS.contains(&given)) {
        let (least, most) = REQUEST_TIMEOUT_SECONDS.into_inner();
        wrong.push(FieldViolation::new(
            "koyeb.request_timeout_seconds",
            format!("must be between {least} and {most}"),
        ));
    }
    // AUTOASSIGNED is the zero member: a client that leaves the type out means a custom domain.
    let app_id = match body.app_id.as_str() {
        "" => None,
        text => app_named(&call, text, &mut wrong).await?,
    };
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let id = DomainId::random();
    let balancer = LoadBalancer {
        cloudflare: body.cloudflare.clone(),
        koyeb: body.koyeb.clone(),
    };
    let domain = call
        .api
        .store
        .create_domain(NewDomain {
            id,
            organization_id: organization,
            project_id,
            app_id,
            name,
            kind: DomainType::Custom,
            status: DomainStatus::Pending,
            intended_cname: format!("{id}.cname.{}", call.api.settings.base_domain),
            load_balancer: value(&balancer)?,
        })
        .await?;
    Ok(CreateDomainReply {
        domain: Some(views::domain::domain(&call.api.settings, &domain)),
    })
}

/// Whether `name` is `base` or ends in it.
fn below(name: &str, base: &str) -> bool {
    name.strip_suffix(base)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

async fn app_named<Q, B>(
    call: &Call<Q, B>,
    text: &str,
    wrong: &mut Vec<FieldViolation>,
) -> Result<Option<AppId>, Error> {
    let found = match text.parse::<AppId>() {
        Err(_) => None,
        Ok(id) => match call.api.store.app(call.caller.organization, id).await {
            Ok(app) => Some(app.id),
            Err(tram_store::Error::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        },
    };
    if found.is_none() {
        wrong.push(FieldViolation::new("app_id", "there is no such app"));
    }
    Ok(found)
}

async fn read(call: Call) -> Result<GetDomainReply, Error> {
    let id: DomainId = call.id("id")?;
    let domain = call.api.store.domain(call.caller.organization, id).await?;
    Ok(GetDomainReply {
        domain: Some(views::domain::domain(&call.api.settings, &domain)),
    })
}

/// `app_id` attaches or (empty) detaches a custom domain; `subdomain` renames an auto-assigned one.
async fn update(call: Call<Update, UpdateDomain>) -> Result<UpdateDomainReply, Error> {
    let id: DomainId = call.id("id")?;
    let organization = call.caller.organization;
    let current = call.api.store.domain(organization, id).await?;
    let mask = call.query.update_mask.as_deref().unwrap_or_default();
    let given: UpdateDomain = crate::body::decode_value(&masked(&call.given, mask))?;
    // A masked member that is left out is one to clear.
    let cleared = mask.split(',').any(|member| member.trim() == "app_id") && given.app_id.is_none();
    let mut wrong = Vec::new();
    let mut edit = DomainEdit::default();
    match given.app_id.as_deref() {
        _ if current.kind == DomainType::Autoassigned && (given.app_id.is_some() || cleared) => {
            wrong.push(FieldViolation::new(
                "app_id",
                "an auto-assigned domain stays with its app: add a custom domain instead",
            ));
        }
        None if cleared => edit.app_id = Some(None),
        None => {}
        Some("") => edit.app_id = Some(None),
        Some(text) => edit.app_id = app_named(&call, text, &mut wrong).await?.map(Some),
    }
    if let Some(subdomain) = &given.subdomain {
        if current.kind == DomainType::Custom {
            wrong.push(FieldViolation::new(
                "subdomain",
                "only an auto-assigned domain can be renamed: delete this one and add another",
            ));
        } else if let Err(rule) = check_slug(subdomain, 3, DNS_LABEL_MAX_CHARACTERS) {
            wrong.push(FieldViolation::new("subdomain", rule));
        } else {
            edit.name = Some(format!("{subdomain}.{}", call.api.settings.base_domain));
        }
    }
    if let Some(name) = edit.name.as_ref().filter(|name| **name != current.name)
        && call.api.store.domain_by_name_unscoped(name).await?.is_some()
    {
        wrong.push(FieldViolation::new("subdomain", "already exists"));
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let domain = if call.query.dry_run {
        current
    } else {
        call.api.store.update_domain(organization, id, &edit).await?
    };
    Ok(UpdateDomainReply {
        domain: Some(views::domain::domain(&call.api.settings, &domain)),
    })
}

async fn remove(call: Call) -> Result<DeleteDomainReply, Error> {
    let id: DomainId = call.id("id")?;
    let organization = call.caller.organization;
    let domain = call.api.store.domain(organization, id).await?;
    if domain.kind == DomainType::Autoassigned {
        return Err(Error::Precondition(
            "an auto-assigned domain goes with its app and cannot be deleted alone".to_owned(),
        ));
    }
    call.api.store.delete_domain(organization, id).await?;
    Ok(DeleteDomainReply {})
}

/// Looks into the DNS at once, as the platform does by itself from time to time.
async fn refresh(call: Call) -> Result<RefreshDomainStatusReply, Error> {
    let id: DomainId = call.id("id")?;
    let organization = call.caller.organization;
    let domain = call.api.store.domain(organization, id).await?;
    if domain.kind == DomainType::Custom
        && call.api.domains.check(&domain).await? == DomainVerdict::Unanswered
    {
        return Err(Error::Unanswered(format!(
            "the DNS gave no answer for `{}`; its status stays {}: try again",
            domain.name, domain.status
        )));
    }
    Ok(RefreshDomainStatusReply {})
}

#[cfg(test)]
mod tests {
    use super::{below, label};

    #[test]
    fn names_below_the_base_domain_are_ours() {
        assert!(below("a.localhost", "localhost") && below("localhost", "localhost"));
        assert!(!below("alocalhost", "localhost") && !below("a.example.org", "localhost"));
    }

    #[test]
    fn any_name_makes_a_label() {
        assert_eq!(label("My Organization!"), "my-organization");
    }
}
