//! Whether instances have IPv6.

use super::value::{Setting, quoted};

/// Whether instances have IPv6 towards the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkV6 {
    /// None, and what they send by it is dropped.
    Off,
    /// If the machine has it.
    Auto,
    /// They have, or nothing starts.
    On,
}

impl Setting for NetworkV6 {
    const KIND: &'static str = "off|auto|on";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            other => Err(format!("`{other}` is neither `off`, `auto` nor `on`")),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::On => "on",
        })
    }
}
