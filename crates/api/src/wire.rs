//! The messages of the wire contract, one file a resource.
//!
//! Names and members are upstream's: the OpenAPI document made from these structs is compared with upstream's by
//! `tests/openapi/compare.py`. The definition of a deployment lives in `tram_types::definition`, since the planner
//! and the controller speak it too. Ids are text here because the contract writes an absent id as `""`.

pub mod account;
pub mod activity;
pub mod app;
pub mod catalog;
pub mod compose;
pub mod credential;
pub mod deployment;
pub mod domain;
pub mod error;
pub mod event;
pub mod helper;
pub mod instance;
pub mod instance_snapshot;
pub mod model;
pub mod model_limit;
pub mod model_route;
pub mod organization;
pub mod pool;
pub mod project;
pub mod quota;
pub mod regional_deployment;
pub mod secret;
pub mod service;
pub mod snapshot;
pub mod stream;
pub mod summary;
pub mod volume;
