//! Reconcilers: observe, plan, execute.
