//! An app with its services, in one call.

use super::{
    app::{App, CreateApp},
    service::{CreateService, Service},
};

tram_types::message! {
    /// An app with its services.
    pub struct CreateCompose {
        pub app: Option<CreateApp>,
        pub services: Vec<CreateService>,
    }

    /// The answer of `compose`.
    pub struct ComposeReply {
        pub app: Option<App>,
        pub services: Vec<Service>,
    }
}
