//! The suite: the real router on the real store (SQLite in a temporary directory), with the fake site of `testkit`.

mod compute;
mod contract;
mod fixture;
mod input;
mod streams;
mod tenants;
mod together;
mod world;
