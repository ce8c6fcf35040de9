//! How much memory the models of a machine have together.

use tram_types::units::MIB;

use super::{
    checkpoint::mebibytes,
    value::{Setting, quoted},
};

/// How much memory the models of a machine have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelsMemory {
    /// A share of what the machine has.
    Auto,
    /// So many MiB.
    MiB(u64),
    /// As much as they ask for.
    Unlimited,
}

/// The share of a machine that models get when nobody says, as parts of [`AUTO_OF`]: the rest is for the system, the
/// platform itself, what else runs, and the cache of the files that models are read from.
const AUTO_PARTS: u64 = 3;
const AUTO_OF: u64 = 4;

impl ModelsMemory {
    /// The same in bytes on a machine with so much memory; `None`: no limit.
    #[must_use]
    pub const fn bytes(self, machine: u64) -> Option<u64> {
        match self {
            Self::Auto => Some(machine / AUTO_OF * AUTO_PARTS),
            Self::MiB(mib) => Some(mib.saturating_mul(MIB)),
            Self::Unlimited => None,
        }
    }
}

impl Setting for ModelsMemory {
    const KIND: &'static str = "SIZE|auto|unlimited";

    fn parse(text: &str) -> Result<Self, String> {
        match (text, mebibytes::parse(text)) {
            ("auto", _) => Ok(Self::Auto),
            ("unlimited", _) => Ok(Self::Unlimited),
            (_, Some(mib)) => Ok(Self::MiB(mib)),
            (text, None) => Err(format!(
                "`{text}` is neither a size above nothing such as 512MiB or 12GiB, nor `auto`, nor `unlimited`"
            )),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Auto => quoted("auto"),
            Self::MiB(mib) => quoted(&mebibytes::show(*mib)),
            Self::Unlimited => quoted("unlimited"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_or_a_word() {
        let parse = ModelsMemory::parse;
        let machine = 16 << 30;
        assert_eq!(parse("12GiB").map(|it| it.bytes(machine)), Ok(Some(12 << 30)));
        assert_eq!(parse("auto").map(|it| it.bytes(machine)), Ok(Some(12 << 30)));
        assert_eq!(parse("unlimited").map(|it| it.bytes(machine)), Ok(None));
        for shown in ["12GiB", "800MiB", "auto", "unlimited"] {
            assert_eq!(parse(shown).map(|it| it.show()), Ok(format!("\"{shown}\"")));
        }
        for wrong in ["0MiB", "12", "75%", ""] {
            let refused = parse(wrong).unwrap_err();
            assert!(refused.contains("`unlimited`"), "{refused}");
        }
    }
}
