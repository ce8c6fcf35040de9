//! The planner against a small world: scenarios one can read, and properties over random histories.

mod checkpoint;
mod handover;
mod in_place;
mod light;
mod load;
mod packing;
mod properties;
mod scenarios;
mod trouble;
mod world;
