//! The system calls an instance may make.
//!
//! Owns the filter: built once by the supervisor, put on by every first process and every exec.
//!
//! The one design choice to know: there are two filters. The first is an allow-list in the spirit of
//! Docker's default; what is not on it fails with EPERM. The second says ENOSYS for calls that
//! programs probe for and can do without (`clone3`, and calls newer than our list), because they take
//! EPERM for a real failure and ENOSYS for "use the older way". Of two equal verdicts the kernel
//! takes the last filter's errno.

mod calls;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// System call numbers from here on are newer than this list; both architectures share them.
const FIRST_UNKNOWN: u32 = 463;
/// Below that, calls this list knows nothing of: `clone3` (its flags are behind a pointer, where no
/// filter can look), `cachestat`, and 453 to 461 (shadow stacks, new futexes, statmount, LSM).
const NOT_IMPLEMENTED: [u32; 11] = [435, 451, 453, 454, 455, 456, 457, 458, 459, 460, 461];

/// Namespaces cannot be made: every `CLONE_NEW*` flag of `clone`.
const NAMESPACE_FLAGS: u64 = 0x7E02_0080;
/// Address families that are no business of an instance: AF_VSOCK talks to the hypervisor, AF_ALG
/// reaches kernel crypto with a long record of holes.
const REFUSED_FAMILIES: [u64; 2] = [40, 38];
/// `ioctl`s that type into a terminal.
const REFUSED_IOCTLS: [u64; 2] = [0x5412, 0x541C];
/// `personality` values that do not weaken the process.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
const FILE_TYPE_MASK: u64 = 0o170_000;
/// `mknod` of a regular file (two ways to say it), a pipe, a socket; never a device.
const NODE_TYPES: [u64; 4] = [0, 0o100_000, 0o010_000, 0o140_000];

/// The compiled filters.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    allow: BpfProgram,
    not_implemented: BpfProgram,
}

/// The filter could not be built or put on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("this processor architecture has no system call filter")]
    Architecture(#[source] seccompiler::BackendError),
    #[error("cannot build the system call filter")]
    Build(#[source] seccompiler::BackendError),
    #[error("cannot put on the system call filter")]
    Apply(#[source] seccompiler::Error),
}

impl Filter {
    pub(crate) fn build() -> Result<Self, Error> {
        let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(Error::Architecture)?;
        let rules = rules().map_err(Error::Build)?;
        let errno = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let allow = SeccompFilter::new(rules, errno, SeccompAction::Allow, architecture)
            .and_then(BpfProgram::try_from)
            .map_err(Error::Build)?;
        Ok(Self { allow, not_implemented: not_implemented() })
    }

    /// From here on, and in every child: needs `no_new_privs`, which this also sets.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        // The allow-list has `seccomp`, so the second can follow the first.
        seccompiler::apply_filter(&self.allow).map_err(Error::Apply)?;
        seccompiler::apply_filter(&self.not_implemented).map_err(Error::Apply)
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = calls::COMMON.iter().chain(calls::ARCHITECTURE).map(|call| (*call, Vec::new())).collect();

    let namespaces = condition(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(NAMESPACE_FLAGS), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![namespaces])?]);

    rules.insert(libc::SYS_socket, vec![none_of(0, &REFUSED_FAMILIES)?]);
    rules.insert(libc::SYS_ioctl, vec![none_of(1, &REFUSED_IOCTLS)?]);
    rules.insert(libc::SYS_personality, one_of(0, SeccompCmpOp::Eq, &PERSONALITIES)?);
    rules.insert(libc::SYS_mknodat, one_of(2, SeccompCmpOp::MaskedEq(FILE_TYPE_MASK), &NODE_TYPES)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_mknod, one_of(1, SeccompCmpOp::MaskedEq(FILE_TYPE_MASK), &NODE_TYPES)?);
    Ok(rules)
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, length, operator, value)
}

/// One rule that holds when the (32 bit) argument is none of these.
fn none_of(argument: u8, values: &[u64]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions: Result<Vec<_>, _> = values
        .iter()
        .map(|value| condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *value))
        .collect();
    SeccompRule::new(conditions?)
}

/// Rules of which one holds when the (32 bit) argument is one of these.
fn one_of(argument: u8, operator: SeccompCmpOp, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values
        .iter()
        .map(|value| SeccompRule::new(vec![condition(argument, SeccompCmpArgLen::Dword, operator.clone(), *value)?]))
        .collect()
}

/// The second filter, by hand: the compiler has no "greater than" for call numbers. It needs no look
/// at the architecture, because the first kills processes that use a foreign one.
fn not_implemented() -> BpfProgram {
    // Classic BPF: load a word, jump if equal, jump if greater or equal, return.
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    let mut program = vec![sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 }];
    // Each comparison, when true, jumps over the ones left and over the `allow`.
    let mut left = u8::try_from(NOT_IMPLEMENTED.len()).unwrap_or(u8::MAX);
    program.push(sock_filter { code: JUMP_GREATER_EQUAL, jt: left + 1, jf: 0, k: FIRST_UNKNOWN });
    for call in NOT_IMPLEMENTED {
        program.push(sock_filter { code: JUMP_EQUAL, jt: left, jf: 0, k: call });
        left -= 1;
    }
    program.push(sock_filter { code: RETURN, jt: 0, jf: 0, k: ALLOW });
    program.push(sock_filter { code: RETURN, jt: 0, jf: 0, k: ERRNO | libc::ENOSYS.cast_unsigned() });
    program
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
            let errno = if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
            let _ = rustix::io::write(&writer, &errno.to_le_bytes());
            0
        })
        .unwrap();
        let mut bytes = [0; 4];
        drop(std::io::Read::read_exact(&mut &reader, &mut bytes));
        let _ = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
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
    fn arguments_decide_where_they_matter() {
        let socket = |family: i64| errno_under_filter(libc::SYS_socket, [family, 1, 0]);
        assert_eq!(socket(i64::from(libc::AF_UNIX)), 0);
        assert_eq!(socket(40), libc::EPERM);
        assert_eq!(socket(38), libc::EPERM);
        let user_namespace = i64::from(libc::CLONE_NEWUSER);
        assert_eq!(errno_under_filter(libc::SYS_clone, [user_namespace, 0, 0]), libc::EPERM);
        // A character device, with a path that is not there: the filter answers before the kernel looks.
        assert_eq!(errno_under_filter(libc::SYS_mknodat, [-1, 0, 0o020_000]), libc::EPERM);
        assert_eq!(errno_under_filter(libc::SYS_mknodat, [-1, 0, 0o010_000]), libc::EFAULT);
    }
}
