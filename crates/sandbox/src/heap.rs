//! Giving a process's own spare memory back to the machine.
//!
//! A program that answers many at once and then idles keeps what it needed at its height: glibc's allocator returns
//! memory at the ends of its heaps alone, and what lives on lies all over them. Called now and then by the control plane.

/// Returns the whole pages that nothing lives in. Takes some milliseconds for each 100 MiB, in which others that
/// allocate wait: not for a path on which somebody does. Does nothing with another allocator than glibc's.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no pointer, and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Anonymous memory in use by this process, in KiB.
    fn resident_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_free_between_what_lives_goes_back() {
        // Every hundredth piece lives on.
        let pieces: Vec<Vec<u8>> = (0..400_000).map(|_| vec![7; 200]).collect();
        let living: Vec<Vec<u8>> = pieces.into_iter().step_by(100).collect();
        let before = resident_kib();
        super::give_back();
        let after = resident_kib();
        assert!(
            after + 30_000 < before,
            "{before} KiB before and {after} KiB after"
        );
        drop(living);
    }
}
