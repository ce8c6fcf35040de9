//! Which instances a request for logs means, and which of their lines.

use regex::{Regex, RegexBuilder};
use tram_site::LogStream;
use tram_store::{filter, record::Instance};
use tram_types::{
    AppId, DeploymentId, FieldViolation, InstanceId, OrganizationId, RegionalDeploymentId, ServiceId,
    Timestamp,
};

use crate::{error::Error, state::ApiState};

/// Most instances whose logs one request reads, newest first: each costs a file.
const INSTANCES_MAX: u32 = 100;
/// Largest compiled regular expression, in bytes: a pattern is the client's, the memory ours.
const REGEX_MAX_BYTES: usize = 1024 * 1024;
/// What the control panel sends to match nothing at all.
const NO_REGION: &str = "none";

crate::query! {
    /// Which lines of which instances. Shared by both ways to read logs.
    struct Lines {
        r#type: Option<String>,
        app_id: Option<AppId>,
        service_id: Option<ServiceId>,
        deployment_id: Option<DeploymentId>,
        regional_deployment_id: Option<RegionalDeploymentId>,
        instance_id: Option<InstanceId>,
        instance_ids: Vec<InstanceId>,
        stream: Option<String>,
        streams: Vec<String>,
        start: Option<Timestamp>,
        end: Option<Timestamp>,
        order: crate::query::Order,
        limit: Option<i64>,
        regex: Option<String>,
        text: Option<String>,
        regions: Vec<String>,
    }
}

/// A request for lines that is in order.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    organization: OrganizationId,
    app_id: Option<AppId>,
    service_id: Option<ServiceId>,
    deployment_id: Option<DeploymentId>,
    regional_deployment_id: Option<RegionalDeploymentId>,
    instance_ids: Vec<InstanceId>,
    regions: Vec<String>,
    /// Logs of builds are asked for, of which there are none: images come ready.
    is_build: bool,
    pub(super) streams: Vec<LogStream>,
    pub(super) matcher: Matcher,
}

/// Which lines count.
#[derive(Debug, Clone)]
pub(super) enum Matcher {
    All,
    Text(String),
    Regex(Regex),
}

impl Matcher {
    pub(super) fn matches(&self, line: &str) -> bool {
        match self {
            Self::All => true,
            Self::Text(text) => line.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(line),
        }
    }
}

impl Selection {
    /// Checks a request; everything wrong is told at once.
    pub(super) fn new(api: &ApiState, organization: OrganizationId, lines: &Lines) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        let is_build = match lines.r#type.as_deref() {
            None | Some("runtime") => false,
            Some("build") => true,
            Some(_) => {
                wrong.push(FieldViolation::new("type", "must be runtime or build"));
                false
            }
        };
        let mut instance_ids = lines.instance_ids.clone();
        instance_ids.extend(lines.instance_id);
        if lines.app_id.is_none()
            && lines.service_id.is_none()
            && lines.deployment_id.is_none()
            && lines.regional_deployment_id.is_none()
            && instance_ids.is_empty()
        {
            wrong.push(FieldViolation::new(
                "service_id",
                "give at least one of app_id, service_id, deployment_id, regional_deployment_id, instance_id",
            ));
        }
        let mut streams = Vec::new();
        for name in lines.streams.iter().chain(&lines.stream) {
            match name.as_str() {
                "stdout" => streams.push(LogStream::Stdout),
                "stderr" => streams.push(LogStream::Stderr),
                "koyeb" => streams.push(LogStream::Koyeb),
                _ => wrong.push(FieldViolation::new("streams", "must be stdout, stderr or koyeb")),
            }
        }
        let matcher = match (&lines.regex, &lines.text) {
            (None, None) => Matcher::All,
            (None, Some(text)) => Matcher::Text(text.clone()),
            (Some(pattern), None) => match RegexBuilder::new(pattern).size_limit(REGEX_MAX_BYTES).build() {
                Ok(regex) => Matcher::Regex(regex),
                Err(error) => {
                    wrong.push(FieldViolation::new("regex", format!("cannot be used: {error}")));
                    Matcher::All
                }
            },
            (Some(_), Some(_)) => {
                wrong.push(FieldViolation::new(
                    "regex",
                    "give either `regex` or `text`, not both",
                ));
                Matcher::All
            }
        };
        if !wrong.is_empty() {
            return Err(Error::InvalidParameters(wrong));
        }
        let resolved = |id: &String| match api.catalog.region(id) {
            Some(region) if id != NO_REGION => region.id.clone(),
            _ => id.clone(),
        };
        Ok(Self {
            organization,
            app_id: lines.app_id,
            service_id: lines.service_id,
            deployment_id: lines.deployment_id,
            regional_deployment_id: lines.regional_deployment_id,
            instance_ids,
            regions: lines.regions.iter().map(resolved).collect(),
            is_build,
            streams,
            matcher,
        })
    }

    /// Whether single instances are meant, which others do not replace.
    pub(super) const fn names_instances(&self) -> bool {
        !self.instance_ids.is_empty()
    }

    /// Refuses objects that are not the caller's.
    pub(super) async fn check_owner(&self, api: &ApiState) -> Result<(), Error> {
        let store = &api.store;
        if let Some(id) = self.app_id {
            store.app(self.organization, id).await?;
        }
        if let Some(id) = self.service_id {
            store.service(self.organization, id).await?;
        }
        if let Some(id) = self.deployment_id {
            store.deployment(self.organization, id).await?;
        }
        if let Some(id) = self.regional_deployment_id {
            store.regional_deployment(self.organization, id).await?;
        }
        for id in self.instance_ids.iter().take(INSTANCES_MAX as usize) {
            store.instance(self.organization, *id).await?;
        }
        Ok(())
    }

    /// The instances that were there at some time between `start` and `end`, newest first.
    pub(super) async fn instances(
        &self,
        api: &ApiState,
        start: Option<Timestamp>,
        end: Option<Timestamp>,
    ) -> Result<Vec<Instance>, Error> {
        if self.is_build {
            return Ok(Vec::new());
        }
        let filter = filter::Instances {
            app_id: self.app_id,
            service_id: self.service_id,
            deployment_id: self.deployment_id,
            regional_deployment_id: self.regional_deployment_id,
            ids: self.instance_ids.clone(),
            starting_time: start,
            ending_time: end,
            ..filter::Instances::default()
        };
        let page = filter::Page {
            limit: INSTANCES_MAX,
            offset: 0,
        };
        let mut found = api
            .store
            .list_instances(self.organization, &filter, page)
            .await?
            .items;
        if !self.regions.is_empty() {
            found.retain(|instance| self.regions.contains(&instance.region));
        }
        Ok(found)
    }
}
