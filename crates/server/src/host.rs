//! What this machine is: its processors and its memory, for the catalog.

/// Thousandths of a processor that instances may be given, one instance at most.
#[must_use]
pub fn cpu_millis() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(processors.saturating_mul(1000)).unwrap_or(u32::MAX)
}

/// Memory of this machine, in bytes.
#[must_use]
pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "the type differs between architectures")]
    let (total, unit): (u64, u64) = (info.totalram.into(), info.mem_unit.into());
    total.saturating_mul(unit)
}
