//! The composition root: roles, ports, signals, order of shutdown.
