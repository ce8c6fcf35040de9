//! The classes of isolation: what stands between the program of an instance and the machine.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What stands between the program of an instance and the machine. Chosen by the operator for each instance type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Namespaces, a filter on system calls, limits: the program speaks to the machine's kernel, and may say little.
    #[default]
    Container,
    /// A kernel of its own in user space: the program does not speak to the machine's at all.
    Gvisor,
}

impl Isolation {
    /// All of them, the weakest first.
    pub const ALL: [Self; 2] = [Self::Container, Self::Gvisor];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Gvisor => "gvisor",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// It is the name of no class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownIsolation(String);

impl fmt::Display for UnknownIsolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Isolation::ALL.map(Isolation::as_str).join(", ");
        write!(
            formatter,
            "`{}` is no isolation class: use one of {known}",
            self.0
        )
    }
}

impl std::error::Error for UnknownIsolation {}

impl FromStr for Isolation {
    type Err = UnknownIsolation;

    fn from_str(text: &str) -> Result<Self, UnknownIsolation> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| UnknownIsolation(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_read_as_it_is_written() {
        for class in Isolation::ALL {
            assert_eq!(class.to_string().parse(), Ok(class));
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
        let wrong = "vm".parse::<Isolation>().unwrap_err().to_string();
        assert_eq!(wrong, "`vm` is no isolation class: use one of container, gvisor");
    }
}
