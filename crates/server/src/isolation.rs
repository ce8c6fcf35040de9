//! Which classes of isolation this machine can give, and which the instance types have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tram_cli::settings::Settings;
use tram_sandbox::gvisor::{Missing, Runsc};
use tram_site_local::cdi::Devices;
use tram_types::{Isolation, catalog::Catalog};

use crate::host;

/// A try takes some tenths of a second; the start waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the settings ask for, as far as this machine can.
#[derive(Debug, Default)]
pub struct Classes {
    /// The program of the class `gvisor`, if it works.
    pub gvisor: Option<PathBuf>,
    /// Why it does not, if an instance type wants it.
    why_not: Option<String>,
}

impl Classes {
    /// Looks for what the instance types want, and tries it. What is missing is said in the log, and to whoever asks for
    /// such an instance: the others are served all the same.
    pub async fn find(settings: &Settings) -> Self {
        let named = settings.gvisor_program.clone();
        let wanted = settings.isolation.uses(Isolation::Gvisor);
        if !wanted {
            // Instances of it may run from before: they need nothing but a program, and that only if they start again.
            return Self::default();
        }
        let trying = tokio::task::spawn_blocking(move || find(&named));
        let Ok(found) = tokio::time::timeout(PATIENCE, trying).await else {
            tracing::warn!("gVisor's runsc does not end: its instance types cannot be used");
            return Self {
                gvisor: None,
                why_not: Some(format!(
                    "runsc took longer than {} s to be tried",
                    PATIENCE.as_secs()
                )),
            };
        };
        match found {
            Ok(Ok(runsc)) => {
                tracing::info!(version = runsc.version, program = %runsc.program.display(), "the isolation class gvisor works");
                Self {
                    gvisor: Some(runsc.program),
                    why_not: None,
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the isolation class gvisor does not work: its instance types cannot be used");
                Self {
                    gvisor: None,
                    why_not: Some(error.to_string()),
                }
            }
            Err(error) => Self {
                gvisor: None,
                why_not: Some(error.to_string()),
            },
        }
    }

    /// What this machine offers, with the classes of the instance types and those with GPUs.
    #[must_use]
    pub fn catalog(&self, settings: &Settings, devices: &Devices) -> Catalog {
        let (cpu_millis, memory_bytes) = (host::cpu_millis(), host::memory_bytes());
        let mut catalog = Catalog::local(&settings.region, &settings.region, cpu_millis, memory_bytes);
        for (id, class) in &settings.isolation.0 {
            let why_not = match class {
                Isolation::Container => None,
                Isolation::Gvisor => self.why_not.as_deref(),
            };
            catalog.isolate(id, *class, why_not);
        }
        crate::gpus::add(&mut catalog, settings, devices);
        catalog
    }
}

/// The program that is named, or the one that is there, if it works. Blocks for some tenths of a second.
///
/// # Errors
/// Why there is none that works here.
pub fn find(named: &Path) -> Result<Runsc, Missing> {
    let named = (!named.as_os_str().is_empty()).then_some(named);
    let runsc = Runsc::find(named)?;
    runsc.check()?;
    Ok(runsc)
}
