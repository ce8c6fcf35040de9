//! GPUs of instance types: which devices they are made of, and what is known of those that upstream names.
//!
//! The specifications that devices come from (Container Device Interface) tell neither a name nor an amount of memory:
//! both are what an operator declared, or what is known of an id of the contract.

use crate::units::GIB;

/// Most devices of one instance: what the largest machines of today have.
pub const DEVICES_MAX: u32 = 16;

/// The accelerators of an instance type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Who makes them, such as `NVIDIA`; empty: nobody said.
    pub brand: String,
    /// What they are called, such as `L4`.
    pub name: String,
    /// How many an instance has.
    pub count: u32,
    /// Memory of one device, in bytes, as it was declared; `None`: nobody said.
    pub memory_bytes: Option<u64>,
    /// What an instance is meant to take of the memory of its one device, in bytes: others share it. `None`: its devices
    /// are its alone.
    pub share_bytes: Option<u64>,
    /// The devices, by their names in the Container Device Interface, such as `nvidia.com/gpu=0`.
    pub devices: Vec<String>,
}

impl Gpu {
    /// Memory of GPUs that an instance may fill, in bytes; `None`: nobody said.
    #[must_use]
    pub fn instance_memory_bytes(&self) -> Option<u64> {
        self.share_bytes
            .or_else(|| Some(self.memory_bytes?.saturating_mul(self.count.into())))
    }
}

/// What is known of a GPU by the id of its instance type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Who makes it.
    pub brand: &'static str,
    /// What it is called.
    pub name: &'static str,
    /// Memory of one device, in bytes.
    pub memory_bytes: u64,
    /// How many devices the id says.
    pub count: u32,
}

/// Ids of the contract with one device, and the memory of that in GiB.
const KNOWN: &[(&str, &str, &str, u64)] = &[
    ("gpu-nvidia-rtx-4000-sff-ada", "NVIDIA", "RTX 4000 SFF Ada", 20),
    ("gpu-nvidia-l4", "NVIDIA", "L4", 24),
    ("gpu-nvidia-rtx-a6000", "NVIDIA", "RTX A6000", 48),
    ("gpu-nvidia-l40s", "NVIDIA", "L40S", 48),
    ("gpu-nvidia-a100", "NVIDIA", "A100", 80),
    ("gpu-nvidia-a100-sxm", "NVIDIA", "A100 SXM", 80),
    ("gpu-nvidia-h100", "NVIDIA", "H100", 80),
    ("gpu-nvidia-h200", "NVIDIA", "H200", 141),
    ("gpu-nvidia-b200", "NVIDIA", "B200", 180),
    ("gpu-nvidia-rtx-pro-6000", "NVIDIA", "RTX PRO 6000", 96),
];

/// What the contract means by this id, such as `gpu-nvidia-l4` or, for two of them, `2-gpu-nvidia-l4`.
#[must_use]
pub fn known(id: &str) -> Option<Known> {
    let (count, one) = match id.split_once('-') {
        Some((number @ ("2" | "4" | "8"), rest)) => (number.parse().ok()?, rest),
        _ => (1, id),
    };
    let (_, brand, name, gib) = KNOWN.iter().find(|(known, ..)| *known == one)?;
    Some(Known {
        brand,
        name,
        memory_bytes: gib * GIB,
        count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_contract_say_what_they_are() {
        let one = known("gpu-nvidia-l4").unwrap();
        assert_eq!(
            (one.brand, one.name, one.memory_bytes, one.count),
            ("NVIDIA", "L4", 24 * GIB, 1)
        );
        assert_eq!(known("8-gpu-nvidia-h100").unwrap().count, 8);
        for unknown in ["3-gpu-nvidia-h100", "gpu-mine", "2-", ""] {
            assert_eq!(known(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn an_instance_may_fill_its_devices_or_its_share() {
        let mut gpu = Gpu {
            brand: String::new(),
            name: "mine".to_owned(),
            count: 2,
            memory_bytes: Some(24 * GIB),
            share_bytes: None,
            devices: Vec::new(),
        };
        assert_eq!(gpu.instance_memory_bytes(), Some(48 * GIB));
        gpu.share_bytes = Some(6 * GIB);
        assert_eq!(gpu.instance_memory_bytes(), Some(6 * GIB));
        gpu.share_bytes = None;
        gpu.memory_bytes = None;
        assert_eq!(gpu.instance_memory_bytes(), None);
    }
}
