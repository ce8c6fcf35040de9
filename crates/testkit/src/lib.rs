//! What tests share: a fake clock, a fake site, the simulator.
