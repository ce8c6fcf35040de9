//! What there is to run on: regions, datacenters and instance types.
//!
//! The ids are upstream's, because clients send `micro`, `nano` or `was` without asking. An installation publishes
//! only what it can run; [`Catalog`] is that selection, made once from the settings and passed on.

use std::borrow::Cow;

use crate::{
    engine::Engine,
    gpu::Gpu,
    isolation::Isolation,
    units::{GIB, MIB},
};

/// How large an instance is.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceType {
    /// Upstream's id, such as `micro`, or the operator's own.
    pub id: Cow<'static, str>,
    /// What people read.
    pub display_name: Cow<'static, str>,
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Disk, in bytes.
    pub disk_bytes: u64,
    /// Which family it belongs to.
    pub family: Family,
    /// What stands between its instances and the machine.
    pub isolation: Isolation,
    /// Its accelerators.
    pub gpu: Option<Gpu>,
    /// Why no instance of it can be started here, in words for whoever asks for one; `None`: it can.
    pub unusable: Option<String>,
}

/// A family of instance types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// The free instance.
    Free,
    /// Small shares of a processor.
    Eco,
    /// The usual ones.
    Standard,
    /// Those with accelerators, which the operator declares.
    Gpu,
}

impl InstanceType {
    /// Whole mebibytes of memory: `KOYEB_INSTANCE_MEMORY_MB`.
    #[must_use]
    pub const fn memory_mib(&self) -> u64 {
        self.memory_bytes / MIB
    }

    /// The memory in bytes that a model served by `engine` has to fit into: that of the GPUs, where the engine uses them
    /// and somebody declared it.
    #[must_use]
    pub fn model_memory_bytes(&self, engine: Engine) -> u64 {
        match &self.gpu {
            // Ours computes on processors.
            Some(gpu) if engine != Engine::Tram => gpu.instance_memory_bytes().unwrap_or(self.memory_bytes),
            _ => self.memory_bytes,
        }
    }
}

macro_rules! instance_types {
    ($($id:literal $display:literal $family:ident $cpu_millis:literal $memory_mib:literal $disk_mib:literal;)+) => {
        /// Every instance type of the contract that runs on processors, smallest first within its family.
        pub const INSTANCE_TYPES: &[InstanceType] = &[$(InstanceType {
            id: Cow::Borrowed($id), display_name: Cow::Borrowed($display), family: Family::$family, cpu_millis: $cpu_millis,
            memory_bytes: $memory_mib * MIB, disk_bytes: $disk_mib * MIB,
            isolation: Isolation::Container, gpu: None, unusable: None,
        }),+];
    };
}

instance_types! {
    "free" "Free" Free 100 512 2048;
    "eco-nano" "Eco Nano" Eco 100 256 2048;
    "eco-micro" "Eco Micro" Eco 250 512 4096;
    "eco-small" "Eco Small" Eco 500 1024 8192;
    "eco-medium" "Eco Medium" Eco 1000 2048 10240;
    "eco-large" "Eco Large" Eco 2000 4096 12288;
    "eco-xlarge" "Eco XLarge" Eco 4000 8192 16384;
    "eco-2xlarge" "Eco 2XLarge" Eco 8000 16384 20480;
    "nano" "Nano" Standard 250 256 2560;
    "micro" "Micro" Standard 500 512 5120;
    "small" "Small" Standard 1000 1024 10240;
    "medium" "Medium" Standard 2000 2048 20480;
    "large" "Large" Standard 4000 4096 40960;
    "xlarge" "XLarge" Standard 8000 8192 81920;
    "2xlarge" "2XLarge" Standard 16000 16384 163840;
    "3xlarge" "3XLarge" Standard 24000 32768 245760;
    "4xlarge" "4XLarge" Standard 32000 65536 327680;
    "5xlarge" "5XLarge" Standard 40000 131072 409600;
}

/// The instance type a definition gets when it names none.
pub const DEFAULT_INSTANCE_TYPE: &str = "nano";

/// One place a service can run in.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Upstream's id, such as `fra`.
    pub id: String,
    /// What people read.
    pub name: String,
    /// Id of its one datacenter.
    pub datacenter: String,
    /// Longitude and latitude.
    pub coordinates: [f64; 2],
}

/// Other ids for a region of this installation: clients come with defaults of their own (`na`, `was`, `fra`).
const KNOWN_REGION_ALIASES: &[&str] = &["fra", "was", "sin", "par", "tyo", "sfo", "na", "eu", "ap"];

/// What this installation offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalog {
    /// The regions, the default one first.
    pub regions: Vec<Region>,
    /// Instance types on offer.
    pub instance_types: Vec<InstanceType>,
    /// Whether upstream's region ids that are not here lead to the default region.
    ///
    /// On for a single machine: official clients send `na` or `was` unasked, and there is one place only, so the
    /// data cannot go anywhere else.
    pub accept_known_regions: bool,
}

impl Catalog {
    /// The catalog of one machine: one region, every instance type that fits its processors and memory.
    #[must_use]
    pub fn local(region_id: &str, region_name: &str, cpu_millis: u32, memory_bytes: u64) -> Self {
        Self {
            regions: vec![Region {
                id: region_id.to_owned(),
                name: region_name.to_owned(),
                datacenter: format!("{region_id}1"),
                coordinates: [0.0, 0.0],
            }],
            instance_types: INSTANCE_TYPES
                .iter()
                .filter(|kind| kind.cpu_millis <= cpu_millis && kind.memory_bytes <= memory_bytes)
                .cloned()
                .collect(),
            accept_known_regions: true,
        }
    }

    /// Gives an instance type, if it is on offer, another class. `unusable`: why that class does not work here, if it does
    /// not.
    pub fn isolate(&mut self, id: &str, class: Isolation, unusable: Option<&str>) {
        for kind in self.instance_types.iter_mut().filter(|kind| kind.id == id) {
            kind.isolation = class;
            kind.unusable = unusable.map(|reason| {
                format!("its isolation class `{class}` does not work on this machine: {reason}")
            });
        }
    }

    /// The region that `id` leads to, if it can be used here.
    #[must_use]
    pub fn region(&self, id: &str) -> Option<&Region> {
        self.regions.iter().find(|region| region.id == id).or_else(|| {
            (self.accept_known_regions && KNOWN_REGION_ALIASES.contains(&id))
                .then(|| self.regions.first())
                .flatten()
        })
    }

    /// The instance type with this id, if it is on offer.
    #[must_use]
    pub fn instance_type(&self, id: &str) -> Option<&InstanceType> {
        self.instance_types.iter().find(|kind| kind.id == id)
    }

    /// Ids of the regions, for messages.
    #[must_use]
    pub fn region_ids(&self) -> String {
        self.regions
            .iter()
            .map(|region| region.id.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The smallest instance type on offer with so much memory.
    #[must_use]
    pub fn smallest_with_memory(&self, bytes: u64) -> Option<&InstanceType> {
        self.instance_types
            .iter()
            .filter(|kind| kind.memory_bytes >= bytes && kind.family == Family::Standard)
            .min_by_key(|kind| kind.memory_bytes)
    }

    /// Ids of the instance types, for messages.
    #[must_use]
    pub fn instance_type_ids(&self) -> String {
        self.instance_types
            .iter()
            .map(|kind| kind.id.as_ref())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Whether this id is of an instance type with accelerators.
    #[must_use]
    pub fn has_gpu(&self, id: &str) -> bool {
        self.instance_type(id).is_some_and(|kind| kind.gpu.is_some())
    }
}

/// A catalog for tests and the simulator: one region `fra`, room for every instance type.
#[must_use]
pub fn unlimited() -> Catalog {
    Catalog::local("fra", "Frankfurt", u32::MAX, 1024 * GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_offers_what_fits_it() {
        let catalog = Catalog::local("fra", "Frankfurt", 2000, 4 * GIB);
        assert!(catalog.instance_type("medium").is_some());
        assert!(catalog.instance_type("xlarge").is_none());
    }

    #[test]
    fn a_class_belongs_to_an_instance_type_and_says_why_it_cannot_be_had() {
        let mut catalog = unlimited();
        catalog.isolate("small", Isolation::Gvisor, None);
        catalog.isolate("micro", Isolation::Gvisor, Some("it is not installed"));
        let kind = |id| catalog.instance_type(id).unwrap();
        assert_eq!(kind("small").isolation, Isolation::Gvisor);
        assert_eq!(kind("small").unusable, None);
        assert_eq!(kind("nano").isolation, Isolation::Container);
        assert_eq!(
            kind("micro").unusable.as_deref(),
            Some("its isolation class `gvisor` does not work on this machine: it is not installed")
        );
    }

    #[test]
    fn a_model_fits_into_the_memory_that_its_engine_uses() {
        let mut catalog = unlimited();
        let mut kind = catalog.instance_type("small").unwrap().clone();
        kind.id = "gpu-mine".into();
        kind.family = Family::Gpu;
        kind.gpu = Some(Gpu {
            brand: String::new(),
            name: "mine".to_owned(),
            count: 2,
            memory_bytes: Some(24 * GIB),
            share_bytes: None,
            devices: vec!["acme.com/gpu=0".to_owned(), "acme.com/gpu=1".to_owned()],
        });
        catalog.instance_types.push(kind);
        assert!(catalog.has_gpu("gpu-mine") && !catalog.has_gpu("small") && !catalog.has_gpu("nowhere"));
        let kind = catalog.instance_type("gpu-mine").unwrap();
        assert_eq!(kind.model_memory_bytes(Engine::Vllm), 48 * GIB);
        assert_eq!(
            kind.model_memory_bytes(Engine::Tram),
            GIB,
            "it computes on processors"
        );
        let small = catalog.instance_type("small").unwrap();
        assert_eq!(small.model_memory_bytes(Engine::Vllm), GIB);
        let chosen = catalog.smallest_with_memory(GIB).unwrap();
        assert_eq!(chosen.id, "small", "nobody is given a GPU unasked");
    }

    #[test]
    fn upstream_defaults_lead_to_the_only_region() {
        let catalog = unlimited();
        assert_eq!(catalog.region("na").map(|region| region.id.as_str()), Some("fra"));
        assert_eq!(catalog.region("nowhere"), None);
    }
}
