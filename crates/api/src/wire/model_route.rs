//! Names that lead to models.

use tram_types::Timestamp;

tram_types::message! {
    /// A name by which models are asked on the platform's own address, and where it leads.
    pub struct ModelRoute {
        /// What requests give as `model`.
        pub name: String,
        /// One of these gets a question, drawn by weight.
        pub targets: Vec<ModelRouteTarget>,
        /// These get it, in their order, when that one refuses or fails before its first byte.
        pub fallbacks: Vec<String>,
        /// Services that run anywhere else are passed over; empty: nowhere is too far.
        pub regions: Vec<String>,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
    }

    /// One of the places that a route leads to.
    pub struct ModelRouteTarget {
        /// A service that serves a model, named as requests name it: `service`, `app/service`, `service:adapter`.
        pub model: String,
        /// Its share beside the others'; 0 means 1.
        pub weight: i64,
    }

    /// A route to set, in place of what it was.
    pub struct SetModelRoute {
        pub targets: Vec<ModelRouteTarget>,
        pub fallbacks: Vec<String>,
        pub regions: Vec<String>,
    }

    /// The answer of `list model routes`.
    pub struct ListModelRoutesReply {
        pub routes: Vec<ModelRoute>,
        pub count: i64,
    }

    /// The answer of `set model route`.
    pub struct SetModelRouteReply {
        pub route: Option<ModelRoute>,
    }

    /// The empty answer of `delete model route`.
    pub struct DeleteModelRouteReply {}
}
