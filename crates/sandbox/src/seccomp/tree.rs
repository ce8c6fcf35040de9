//! From verdicts to a filter program: a binary search over ranges of call numbers.
//!
//! Classic BPF has forward jumps only, and conditional ones reach 255 instructions; the tree is laid
//! out left half first, with a long jump where the left half is too big.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, TargetArch, sock_filter};

/// What the kernel is told (`SECCOMP_RET_*`).
pub(super) const ALLOW: u32 = 0x7fff_0000;
pub(super) const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
pub(super) const REFUSE: u32 = ERRNO | libc::EPERM.cast_unsigned();
pub(super) const NOT_IMPLEMENTED: u32 = ERRNO | libc::ENOSYS.cast_unsigned();

// Instructions: load a word of `seccomp_data`, jump always, jump if equal / not below / any bit set,
// mask what was loaded, return.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_NOT_BELOW: u16 = 0x35;
const JUMP_ANY_SET: u16 = 0x45;
const MASK: u16 = 0x54;
const RETURN: u16 = 0x06;

// Where things are in `seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;

/// What is said to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    NotImplemented,
    /// It depends on the lower half of this argument; EPERM if it does not hold.
    Check(u8, Check),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    NoneSet(u32),
    NoneOf(&'static [u32]),
    OneOf { mask: u32, values: &'static [u32] },
}

/// `None` is EPERM; from `first_unknown` on, everything is ENOSYS. A foreign architecture is killed:
/// its numbers mean other calls.
pub(super) fn compile(
    architecture: TargetArch,
    verdicts: &BTreeMap<u32, Verdict>,
    first_unknown: u32,
) -> BpfProgram {
    let mut ranges: Vec<(u32, Option<Verdict>)> = Vec::new();
    for number in 0..first_unknown {
        let verdict = verdicts.get(&number).copied();
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number, verdict));
        }
    }
    ranges.push((first_unknown, Some(Verdict::NotImplemented)));

    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        jump(JUMP_EQUAL, architecture_number(architecture), 1, 0),
        statement(RETURN, KILL),
        statement(LOAD, NUMBER),
    ];
    program.extend(search(&ranges));
    program
}

fn search(ranges: &[(u32, Option<Verdict>)]) -> BpfProgram {
    if let [(_, verdict)] = ranges {
        return leaf(*verdict);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let Some((start, _)) = right.first() else {
        return leaf(None);
    };
    let (left, right) = (search(left), search(right));
    let mut program = match u8::try_from(left.len()) {
        Ok(over) => vec![jump(JUMP_NOT_BELOW, *start, over, 0)],
        Err(_) => {
            let over = u32::try_from(left.len()).unwrap_or(u32::MAX);
            vec![jump(JUMP_NOT_BELOW, *start, 0, 1), statement(JUMP, over)]
        }
    };
    program.extend(left);
    program.extend(right);
    program
}

fn leaf(verdict: Option<Verdict>) -> BpfProgram {
    match verdict {
        None => vec![statement(RETURN, REFUSE)],
        Some(Verdict::Allow) => vec![statement(RETURN, ALLOW)],
        Some(Verdict::NotImplemented) => vec![statement(RETURN, NOT_IMPLEMENTED)],
        Some(Verdict::Check(argument, check)) => {
            let mut program = vec![statement(LOAD, ARGUMENTS + u32::from(argument) * ARGUMENT_BYTES)];
            match check {
                Check::NoneSet(bits) => program.extend(either(vec![(JUMP_ANY_SET, bits)], REFUSE, ALLOW)),
                Check::NoneOf(values) => program.extend(either(equal(values), REFUSE, ALLOW)),
                Check::OneOf { mask, values } => {
                    program.push(statement(MASK, mask));
                    program.extend(either(equal(values), ALLOW, REFUSE));
                }
            }
            program
        }
    }
}

fn equal(values: &[u32]) -> Vec<(u16, u32)> {
    values.iter().map(|value| (JUMP_EQUAL, *value)).collect()
}

/// One answer if any of the tests holds, the other if none does.
fn either(tests: Vec<(u16, u32)>, any: u32, none: u32) -> BpfProgram {
    let mut program = BpfProgram::new();
    // Over the tests that are left, and over the answer for none.
    let mut over = u8::try_from(tests.len()).unwrap_or(u8::MAX);
    for (code, value) in tests {
        program.push(jump(code, value, over, 0));
        over = over.saturating_sub(1);
    }
    program.push(statement(RETURN, none));
    program.push(statement(RETURN, any));
    program
}

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// `AUDIT_ARCH_*` of the kernel.
fn architecture_number(architecture: TargetArch) -> u32 {
    match architecture {
        TargetArch::x86_64 => 0xC000_003E,
        TargetArch::aarch64 => 0xC000_00B7,
        TargetArch::riscv64 => 0xC000_00F3,
    }
}

/// Run the program as the kernel would, for a call without arguments.
#[cfg(test)]
pub(super) fn simulate(program: &BpfProgram, architecture: &str, number: u32) -> u32 {
    let architecture = TargetArch::try_from(architecture).map_or(0, architecture_number);
    let (mut at, mut loaded) = (0, 0);
    loop {
        let instruction = &program[at];
        at += 1;
        let test = match instruction.code {
            LOAD => {
                loaded = [(NUMBER, number), (ARCHITECTURE, architecture)]
                    .into_iter()
                    .find_map(|(offset, value)| (offset == instruction.k).then_some(value))
                    .unwrap_or(0);
                continue;
            }
            JUMP => {
                at += instruction.k as usize;
                continue;
            }
            MASK => {
                loaded &= instruction.k;
                continue;
            }
            RETURN => return instruction.k,
            JUMP_EQUAL => loaded == instruction.k,
            JUMP_NOT_BELOW => loaded >= instruction.k,
            JUMP_ANY_SET => loaded & instruction.k != 0,
            other => panic!("instruction {other}"),
        };
        at += usize::from(if test { instruction.jt } else { instruction.jf });
    }
}
