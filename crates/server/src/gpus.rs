//! Which instance types with GPUs this machine has: what the settings declare, as far as the specifications of devices
//! bear it out.
//!
//! Asked when the server starts, for the catalog, and by `tram doctor`. A type whose devices are not there is kept out of
//! the catalog and said in the log, so that nobody is offered what the machine cannot give.

use std::borrow::Cow;

use tram_cli::settings::{GpuType, Settings};
use tram_site_local::cdi::Devices;
use tram_types::{
    Isolation,
    catalog::{Catalog, Family, InstanceType},
    gpu::{Gpu, known},
    units::MIB,
};

/// Reads the specifications of devices. Blocks.
#[must_use]
pub fn devices(settings: &Settings) -> Devices {
    Devices::read(&settings.cdi_directories.0)
}

/// The same, beside other work. Nothing of it is not known: the machine then has no such instance types.
pub async fn read(settings: &Settings) -> Devices {
    let folders = settings.cdi_directories.0.clone();
    tokio::task::spawn_blocking(move || Devices::read(&folders))
        .await
        .unwrap_or_default()
}

/// Adds what this machine has to its catalog, and tells the log what is not to be had.
pub fn add(catalog: &mut Catalog, settings: &Settings, devices: &Devices) {
    if settings.gpu_types.0.is_empty() {
        return;
    }
    for problem in &devices.problems {
        tracing::warn!(path = %problem.path.display(), problem = problem.what, "a specification of devices is not used");
    }
    for declared in &settings.gpu_types.0 {
        match of(declared, catalog, devices) {
            Ok(kind) => {
                let gpu = kind.gpu.as_ref();
                tracing::info!(
                    instance_type = %kind.id,
                    devices = gpu.map_or_else(String::new, |gpu| gpu.devices.join(", ")),
                    "this machine has an instance type with GPUs"
                );
                catalog.instance_types.push(kind);
            }
            Err(why) => {
                tracing::warn!(
                    instance_type = declared.id,
                    why,
                    "an instance type with GPUs is not offered"
                );
            }
        }
    }
}

/// The instance type that is declared, as this machine can give it.
///
/// # Errors
/// Why it cannot.
pub fn of(declared: &GpuType, catalog: &Catalog, devices: &Devices) -> Result<InstanceType, String> {
    let names: Vec<String> = match declared.devices.as_slice() {
        [] => devices.of_kind(&declared.kind),
        named => named
            .iter()
            .map(|name| format!("{}={name}", declared.kind))
            .collect(),
    };
    if let Some(obstacle) = names.iter().find_map(|name| devices.obstacle(name)) {
        return Err(obstacle);
    }
    let count = declared.count();
    let there = names.len();
    if there == 0 {
        return Err(format!(
            "no specification tells of a device of the kind `{}` that can be given: write one with `nvidia-ctk cdi \
             generate`",
            declared.kind
        ));
    }
    if there < usize::try_from(count).unwrap_or(usize::MAX) {
        return Err(format!(
            "it needs {count} devices, and specifications tell of {there} of the kind `{}`",
            declared.kind
        ));
    }
    let memory_bytes = declared.memory_mib().map(|mib| mib.saturating_mul(MIB));
    let share_bytes = declared.share_mib.map(|mib| mib.saturating_mul(MIB));
    let on_one = share_bytes
        .zip(memory_bytes)
        .map_or(1, |(share, all)| all / share.max(1));
    let instances = (there as u64).saturating_mul(on_one) / u64::from(count.max(1));
    let size = size(declared, catalog, instances.max(1))?;
    let known = known(&declared.id);
    let name = declared.name.clone();
    let name = name.unwrap_or_else(|| known.map_or(declared.id.as_str(), |known| known.name).to_owned());
    Ok(InstanceType {
        id: Cow::Owned(declared.id.clone()),
        display_name: Cow::Owned(match count {
            1 => name.clone(),
            more => format!("{more} × {name}"),
        }),
        family: Family::Gpu,
        isolation: Isolation::Container,
        gpu: Some(Gpu {
            brand: brand(declared, known.map(|known| known.brand)),
            name,
            count,
            memory_bytes,
            share_bytes,
            devices: names,
        }),
        unusable: None,
        ..size
    })
}

/// Processors, memory and disk: those of the type that is named, or of the largest of which as many fit on this machine as
/// there can be instances.
fn size(declared: &GpuType, catalog: &Catalog, instances: u64) -> Result<InstanceType, String> {
    let standard = || {
        let types = catalog.instance_types.iter();
        types.filter(|kind| kind.family == Family::Standard)
    };
    if let Some(id) = &declared.size {
        let found = standard().find(|kind| kind.id == *id);
        return found
            .cloned()
            .ok_or_else(|| format!("its size `{id}` does not fit this machine"));
    }
    let most = crate::host::memory_bytes() / instances;
    let cpu = u64::from(crate::host::cpu_millis()) / instances;
    let fitting = standard().filter(|kind| kind.memory_bytes <= most && u64::from(kind.cpu_millis) <= cpu);
    fitting
        .max_by_key(|kind| kind.memory_bytes)
        .or_else(|| standard().min_by_key(|kind| kind.memory_bytes))
        .cloned()
        .ok_or_else(|| "no instance type fits this machine".to_owned())
}

/// Who makes it: known of the id, or the vendor of the devices, such as `nvidia` of `nvidia.com/gpu`.
fn brand(declared: &GpuType, known: Option<&str>) -> String {
    let vendor = || {
        declared
            .kind
            .split(['.', '/'])
            .next()
            .unwrap_or_default()
            .to_uppercase()
    };
    known.map_or_else(vendor, ToOwned::to_owned)
}

#[cfg(test)]
mod tests;
