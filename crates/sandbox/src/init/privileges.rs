//! Who the program is and what it may do.
//!
//! The one design choice to know: the bounding set is cut to the spec's capabilities for everybody,
//! so nothing inside can ever hold more; root then holds exactly these, any other user none, and the
//! inheritable and ambient sets stay empty (as with Docker).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{During, Step};
use crate::protocol::{Capability, Limits, User};

/// What a program gets that asks for nothing: enough for a server, and what Docker gives.
const NOFILE_DEFAULT: u64 = 1 << 20;

/// Never above what this process may set itself: without CAP_SYS_RESOURCE a higher hard limit is
/// refused.
pub(super) fn limit_resources(limits: &Limits) -> Step<()> {
    let wanted = limits.nofile.unwrap_or(NOFILE_DEFAULT);
    let most = getrlimit(Resource::Nofile)
        .maximum
        .unwrap_or(u64::MAX)
        .min(wanted);
    let files = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Nofile, files).during(|| "limit the open files".into())?;
    if let Some(bytes) = limits.file_bytes {
        let bytes = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        setrlimit(Resource::Fsize, bytes).during(|| "limit the length of files".into())?;
    }
    // A core dump would be written outside the instance, by the machine's core pattern.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).during(|| "forbid core dumps".into())
}

/// Become the user, for good.
pub(super) fn drop_to(user: &User, capabilities: &[Capability]) -> Step<()> {
    let kept = capabilities
        .iter()
        .fold(0, |set, capability| set | 1 << capability.number());
    let kept = CapabilitySet::from_bits_retain(kept);
    let what = || "drop privileges".to_owned();
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Beyond the last capability this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(errno).during(what),
        }
    }
    rustix::thread::set_no_new_privs(true).during(what)?;
    rustix::thread::clear_ambient_capability_set().during(what)?;

    let groups: Vec<rustix::fs::Gid> = user
        .groups
        .iter()
        .map(|gid| rustix::fs::Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(user.uid),
        rustix::fs::Gid::from_raw(user.gid),
    );
    rustix::thread::set_thread_groups(&groups).during(what)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).during(what)?;
    // Leaving uid 0 clears the effective, permitted and ambient sets.
    rustix::thread::set_thread_res_uid(uid, uid, uid).during(what)?;
    let held = if user.uid == 0 {
        kept
    } else {
        CapabilitySet::empty()
    };
    // What we do not have ourselves cannot be given.
    let held = held & rustix::thread::capabilities(None).during(what)?.permitted;
    let sets = CapabilitySets {
        effective: held,
        permitted: held,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).during(what)
}
