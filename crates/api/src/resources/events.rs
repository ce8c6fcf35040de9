//! Histories of objects, the audit feed, notifications.

use tram_store::{
    filter,
    record::{Event, ObjectKind},
};
use tram_types::{
    AppId, DeploymentId, InstanceId, OrganizationId, RegionalDeploymentId, ServiceId, VolumeId,
};
use uuid::Uuid;

use crate::{
    audit,
    endpoint::{Call, Endpoint, get},
    error::Error,
    query::{Order, Page, Paged},
    state::ApiState,
    views::{self, count, event::members},
    wire::{
        activity::{ActivityList, NotificationList},
        event::{
            AppEvent, DeploymentEvent, InstanceEvent, ListAppEventsReply, ListDeploymentEventsReply,
            ListInstanceEventsReply, ListRegionalDeploymentEventsReply, ListServiceEventsReply,
            RegionalDeploymentEvent, ServiceEvent,
        },
        volume::{ListPersistentVolumeEventsReply, PersistentVolumeEvent},
    },
};

/// Which events.
#[derive(Debug)]
struct Which {
    object_kind: ObjectKind,
    object_ids: Vec<Uuid>,
    kinds: Vec<String>,
    order: Order,
    page: Page,
}

async fn read(
    api: &ApiState,
    organization: OrganizationId,
    which: Which,
) -> Result<(Vec<Event>, bool), Error> {
    let filter = filter::Events {
        object_kind: which.object_kind,
        object_ids: which.object_ids,
        kinds: which.kinds,
        order: which.order.stored(),
    };
    let listed = api
        .store
        .list_events(organization, &filter, which.page.stored())
        .await?;
    Ok((listed.items, which.page.has_next(count(listed.count))))
}

macro_rules! histories {
    ($($list:ident($filters:ident: $parameter:ident: $parameter_type:ty) $kind:ident -> $reply:ident, $event:ident.$id:ident;)+) => {$(
        crate::query! {
            /// Which events.
            struct $filters {
                page: Page,
                $parameter: $parameter_type,
                types: Vec<String>,
                order: Order,
            }
        }

        async fn $list(call: Call<$filters>) -> Result<$reply, Error> {
            let query = call.query;
            let which = Which {
                object_kind: ObjectKind::$kind,
                object_ids: query.$parameter.into_iter().map(|id| id.uuid()).collect(),
                kinds: query.types,
                order: query.order,
                page: query.page,
            };
            let (events, has_next) = read(&call.api, call.caller.organization, which).await?;
            Ok($reply {
                events: events
                    .into_iter()
                    .map(|event| $event {
                        id: event.id.to_string(),
                        when: Some(event.occurred_at),
                        organization_id: event.organization_id.to_string(),
                        $id: event.object_id.to_string(),
                        r#type: event.kind,
                        message: event.message,
                        metadata: members(&event.metadata),
                    })
                    .collect(),
                limit: query.page.limit,
                offset: query.page.offset,
                order: query.order.as_str().to_owned(),
                has_next,
            })
        }
    )+};
}

histories! {
    list_app_events(AppEvents: app_id: Option<AppId>) App -> ListAppEventsReply, AppEvent.app_id;
    list_service_events(ServiceEvents: service_id: Option<ServiceId>) Service
        -> ListServiceEventsReply, ServiceEvent.service_id;
    list_deployment_events(DeploymentEvents: deployment_id: Option<DeploymentId>) Deployment
        -> ListDeploymentEventsReply, DeploymentEvent.deployment_id;
    list_regional_deployment_events(RegionalEvents: regional_deployment_id: Option<RegionalDeploymentId>)
        RegionalDeployment
        -> ListRegionalDeploymentEventsReply, RegionalDeploymentEvent.regional_deployment_id;
    list_instance_events(InstanceEvents: instance_ids: Vec<InstanceId>) Instance
        -> ListInstanceEventsReply, InstanceEvent.instance_id;
    list_volume_events(VolumeEvents: persistent_volume_id: Option<VolumeId>) Volume
        -> ListPersistentVolumeEventsReply, PersistentVolumeEvent.persistent_volume_id;
}

crate::query! {
    /// Which activities.
    struct Activities {
        page: Page,
        types: Vec<String>,
    }
    /// Which notifications.
    struct Notifications {
        page: Page,
        mark_read: Option<String>,
        mark_seen: Option<String>,
        unread: Option<String>,
        unseen: Option<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/app_events", "ListAppEvents", list_app_events),
        get("/v1/service_events", "ListServiceEvents", list_service_events),
        get(
            "/v1/deployment_events",
            "ListDeploymentEvents",
            list_deployment_events,
        ),
        get(
            "/v1/regional_deployment_events",
            "ListRegionalDeploymentEvents",
            list_regional_deployment_events,
        ),
        get("/v1/instance_events", "ListInstanceEvents", list_instance_events),
        get(
            "/v1/volume_events",
            "ListPersistentVolumeEvents",
            list_volume_events,
        ),
        get("/v1/activities", "ListActivities", list_activities),
        get(
            "/v1/account/activities",
            "GetAccountActivities",
            list_account_activities,
        ),
        get("/v1/notifications", "ListNotifications", list_notifications),
    ]
}

async fn list_activities(call: Call<Activities>) -> Result<ActivityList, Error> {
    let filter = filter::Activities {
        object_types: call.query.types,
        ..filter::Activities::default()
    };
    activities(&call.api, call.caller.organization, &filter, call.query.page).await
}

/// What the caller did: its user by any token, or the token that speaks for no user.
async fn list_account_activities(call: Call<Paged>) -> Result<ActivityList, Error> {
    let filter = filter::Activities {
        actor_id: Some(audit::actor_id(&call.caller)),
        ..filter::Activities::default()
    };
    activities(&call.api, call.caller.organization, &filter, call.query.page).await
}

async fn activities(
    api: &ApiState,
    organization: OrganizationId,
    filter: &filter::Activities,
    page: Page,
) -> Result<ActivityList, Error> {
    let listed = api
        .store
        .list_activities(organization, filter, page.stored())
        .await?;
    Ok(ActivityList {
        activities: listed.items.iter().map(views::event::activity).collect(),
        limit: page.limit,
        offset: page.offset,
        has_next: page.has_next(count(listed.count)),
    })
}

/// Nobody is notified of anything yet: an empty list, as a user without news has upstream.
async fn list_notifications(call: Call<Notifications>) -> Result<NotificationList, Error> {
    let page = call.query.page;
    Ok(NotificationList {
        limit: page.limit,
        offset: page.offset,
        ..NotificationList::default()
    })
}
