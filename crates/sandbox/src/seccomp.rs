//! The system calls an instance may make.
//!
//! Owns the filter: built once by the supervisor, put on by every first process and every exec.
//!
//! The one design choice to know: programs probe for new calls and take ENOSYS for "use the older way"
//! but EPERM for a real failure. So what is refused fails with EPERM, and `clone3` and everything newer
//! than our list with ENOSYS. The kernel runs a filter for every call number when it is put on, so the
//! filter is a search tree (see `tree`), not a list: 0.1 ms of a launch instead of 0.7.

mod calls;
mod tree;

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, TargetArch};
use tree::{Check, Verdict};

/// System call numbers from here on are newer than this list; both architectures share them.
const FIRST_UNKNOWN: u32 = 463;
/// Below that, calls this list knows nothing of: `clone3` (its flags are behind a pointer, where no
/// filter can look), `cachestat`, and 453 to 461 (shadow stacks, new futexes, statmount, LSM).
const NOT_IMPLEMENTED: [u32; 11] = [435, 451, 453, 454, 455, 456, 457, 458, 459, 460, 461];

/// Namespaces cannot be made: every `CLONE_NEW*` flag of `clone`.
const NAMESPACE_FLAGS: u32 = 0x7E02_0080;
/// Address families that are no business of an instance: AF_VSOCK talks to the hypervisor, AF_ALG
/// reaches kernel crypto with a long record of holes.
const REFUSED_FAMILIES: [u32; 2] = [40, 38];
/// `ioctl`s that type into a terminal.
const REFUSED_IOCTLS: [u32; 2] = [0x5412, 0x541C];
/// `personality` values that do not weaken the process.
const PERSONALITIES: [u32; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
const FILE_TYPE_MASK: u32 = 0o170_000;
/// `mknod` of a regular file (two ways to say it), a pipe, a socket; never a device.
const NODE_TYPES: [u32; 4] = [0, 0o100_000, 0o010_000, 0o140_000];

/// The compiled filter.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: BpfProgram,
}

/// The filter could not be built or put on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("this processor architecture has no system call filter")]
    Architecture(#[source] seccompiler::BackendError),
    #[error("cannot put on the system call filter")]
    Apply(#[source] seccompiler::Error),
}

impl Filter {
    pub(crate) fn build() -> Result<Self, Error> {
        let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(Error::Architecture)?;
        Ok(Self {
            program: tree::compile(architecture, &verdicts(), FIRST_UNKNOWN),
        })
    }

    /// From here on, and in every child: needs `no_new_privs`, which this also sets.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        seccompiler::apply_filter(&self.program).map_err(Error::Apply)
    }
}

/// What is said to each call; to those not here, EPERM.
fn verdicts() -> BTreeMap<u32, Verdict> {
    let number = |call: i64| u32::try_from(call).unwrap_or(u32::MAX);
    let allowed = calls::COMMON.iter().chain(calls::ARCHITECTURE);
    let mut verdicts: BTreeMap<u32, Verdict> = allowed.map(|call| (number(*call), Verdict::Allow)).collect();
    verdicts.extend(NOT_IMPLEMENTED.map(|call| (call, Verdict::NotImplemented)));
    let mut check = |call: i64, argument: u8, check: Check| {
        verdicts.insert(number(call), Verdict::Check(argument, check))
    };
    check(libc::SYS_clone, 0, Check::NoneSet(NAMESPACE_FLAGS));
    check(libc::SYS_socket, 0, Check::NoneOf(&REFUSED_FAMILIES));
    check(libc::SYS_ioctl, 1, Check::NoneOf(&REFUSED_IOCTLS));
    check(
        libc::SYS_personality,
        0,
        Check::OneOf {
            mask: u32::MAX,
            values: &PERSONALITIES,
        },
    );
    check(
        libc::SYS_mknodat,
        2,
        Check::OneOf {
            mask: FILE_TYPE_MASK,
            values: &NODE_TYPES,
        },
    );
    #[cfg(target_arch = "x86_64")]
    check(
        libc::SYS_mknod,
        1,
        Check::OneOf {
            mask: FILE_TYPE_MASK,
            values: &NODE_TYPES,
        },
    );
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applied in a child, because a filter cannot be taken off.
    fn errno_under_filter(call: i64, arguments: [i64; 3]) -> i32 {
        let filter = Filter::build().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        // The test harness has threads; the child only makes plain system calls and small allocations.
        let pid = crate::sys::fork(|| {
            if filter.apply().is_err() {
                return 1;
            }
            // SAFETY: the calls under test get integers that name no memory.
            let result = unsafe { libc::syscall(call, arguments[0], arguments[1], arguments[2]) };
            let errno = if result < 0 {
                std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
            } else {
                0
            };
            let _ = rustix::io::write(&writer, &errno.to_le_bytes());
            0
        })
        .unwrap();
        let mut bytes = [0; 4];
        drop(std::io::Read::read_exact(&mut &reader, &mut bytes));
        let _ = rustix::process::waitpid(
            rustix::process::Pid::from_raw(pid),
            rustix::process::WaitOptions::empty(),
        );
        i32::from_le_bytes(bytes)
    }

    #[test]
    fn dangerous_calls_are_refused_and_ordinary_ones_are_not() {
        for call in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_ptrace,
            libc::SYS_keyctl,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_process_vm_readv,
            libc::SYS_open_by_handle_at,
            libc::SYS_fsopen,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
        ] {
            assert_eq!(errno_under_filter(call, [0; 3]), libc::EPERM, "call {call}");
        }
        assert_eq!(errno_under_filter(libc::SYS_getppid, [0; 3]), 0);
    }

    #[test]
    fn probed_for_calls_are_not_implemented() {
        for call in [libc::SYS_clone3, 451, 461, 463, 467, 600] {
            assert_eq!(errno_under_filter(call, [0; 3]), libc::ENOSYS, "call {call}");
        }
    }

    #[test]
    fn every_number_gets_the_verdict_of_the_list() {
        let (filter, verdicts) = (Filter::build().unwrap(), verdicts());
        for call in (0..700).chain([u32::MAX, 0x4000_0000, 0x4000_0001]) {
            let expected = match verdicts.get(&call) {
                _ if call >= FIRST_UNKNOWN => Some(tree::NOT_IMPLEMENTED),
                None => Some(tree::REFUSE),
                Some(Verdict::Allow) => Some(tree::ALLOW),
                Some(Verdict::NotImplemented) => Some(tree::NOT_IMPLEMENTED),
                Some(Verdict::Check(..)) => None,
            };
            if let Some(expected) = expected {
                assert_eq!(
                    tree::simulate(&filter.program, std::env::consts::ARCH, call),
                    expected,
                    "call {call}"
                );
            }
        }
        assert_eq!(tree::simulate(&filter.program, "other", 0), tree::KILL);
        assert!(
            filter.program.len() < 1000,
            "{} instructions",
            filter.program.len()
        );
    }

    #[test]
    fn arguments_decide_where_they_matter() {
        let socket = |family: i64| errno_under_filter(libc::SYS_socket, [family, 1, 0]);
        assert_eq!(socket(i64::from(libc::AF_UNIX)), 0);
        assert_eq!(socket(40), libc::EPERM);
        assert_eq!(socket(38), libc::EPERM);
        let user_namespace = i64::from(libc::CLONE_NEWUSER);
        assert_eq!(
            errno_under_filter(libc::SYS_clone, [user_namespace, 0, 0]),
            libc::EPERM
        );
        // A character device, with a path that is not there: the filter answers before the kernel looks.
        assert_eq!(
            errno_under_filter(libc::SYS_mknodat, [-1, 0, 0o020_000]),
            libc::EPERM
        );
        assert_eq!(
            errno_under_filter(libc::SYS_mknodat, [-1, 0, 0o010_000]),
            libc::EFAULT
        );
    }
}
