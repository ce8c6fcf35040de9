//! How long the kernels' threads spin before they sleep, which OpenMP's library reads once, as the program begins.
//!
//! Threads wait for each other several hundred times in a step. The library's default is to spin for milliseconds each
//! time: good where every thread has a processor of its own, ruinous where anything else wants one, for a thread that
//! spins keeps the one it waits for from running. Two threads on two busy processors: 2 tokens a second with the
//! default, 25 with this (SmolLM2-135M).

use std::os::unix::process::CommandExt;
use std::process::Command;

/// libgomp's variable: how often a thread looks before it sleeps.
const VARIABLE: &str = "GOMP_SPINCOUNT";
/// The standard's variable for the same; who sets it has decided.
const POLICY: &str = "OMP_WAIT_POLICY";
/// Some ten microseconds: as much as threads that run are apart, and less than a sleep and a wake cost.
const LOOKS: &str = "1000";

/// Begins this program anew with the variable set, unless it or the policy is. Returns only when nothing is to be done,
/// or nothing can be: without `/proc` the program does not find itself, and goes on as it is.
pub(crate) fn bound() {
    if std::env::var_os(VARIABLE).is_some() || std::env::var_os(POLICY).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // Returns on failure alone.
    let _ = again.args(arguments).env(VARIABLE, LOOKS).exec();
}
