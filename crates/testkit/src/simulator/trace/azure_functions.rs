//! Azure Functions: how often each function was called in each minute of a day.
//!
//! The format of the Azure Public Dataset of 2019 (Shahrad et al., ATC 2020), as the sampler of In-Vitro writes it:
//! `NAME_inv.csv` with the columns `HashFunction` and `1`, `2` … or `minute_1`, `minute_2` …, and beside it, when they
//! are there, `NAME_run.csv` (durations in ms) and `NAME_mem.csv` (memory in MB), joined by the hash.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{Csv, Error};

/// Duration of a call of a function that `NAME_run.csv` does not name: the median of the 2019 trace.
const DURATION_MS: f64 = 690.0;
/// Memory of a function that `NAME_mem.csv` does not name: the median of the 2019 trace.
const MEMORY_MIB: f64 = 142.0;
/// How the file of calls ends, before `.csv`.
const CALLS: &str = "_inv.csv";

/// A day of functions.
#[derive(Debug, Clone, PartialEq)]
pub struct Functions {
    /// In the order of the file.
    pub functions: Vec<Function>,
    /// How many minutes were counted.
    pub minutes: u32,
}

/// One function.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Minute, from 0, and how many calls, never 0; in order.
    pub calls: Vec<(u32, u32)>,
    /// Mean duration of a call.
    pub duration_ms: f64,
    /// Memory while it is awake.
    pub memory_mib: f64,
}

/// Whether a file's header is that of such a trace.
pub(crate) fn is_one(csv: &Csv) -> bool {
    csv.has("HashFunction") && (csv.has("minute_1") || csv.has("1"))
}

/// Reads `NAME_inv.csv` and what is beside it.
///
/// # Errors
/// When a file cannot be read, or has no such columns.
pub fn read(path: &Path) -> Result<Functions, Error> {
    let mut csv = Csv::open(path)?;
    let durations = values(path, "_run.csv", "Average")?;
    let memory = values(path, "_mem.csv", "AverageAllocatedMb")?;
    let name = csv.column("HashFunction")?;
    let minutes = (1u32..)
        .map_while(|minute| {
            let named = csv.column(&format!("minute_{minute}"));
            named.or_else(|_| csv.column(&minute.to_string())).ok()
        })
        .collect::<Vec<_>>();
    if minutes.is_empty() {
        return Err(csv.wrong("there is no column `minute_1`".to_owned()));
    }
    let mut functions = Vec::new();
    while let Some(row) = csv.row()? {
        let mut calls = Vec::new();
        for (minute, column) in (0u32..).zip(&minutes) {
            let count: u32 = csv.number(&row, *column)?;
            if count > 0 {
                calls.push((minute, count));
            }
        }
        let name = csv.field(&row, name)?;
        let known = |values: &BTreeMap<String, f64>, default: f64| {
            let value = values.get(name).copied();
            value.filter(|value| *value > 0.0).unwrap_or(default)
        };
        functions.push(Function {
            calls,
            duration_ms: known(&durations, DURATION_MS),
            memory_mib: known(&memory, MEMORY_MIB),
        });
    }
    Ok(Functions {
        functions,
        minutes: u32::try_from(minutes.len()).unwrap_or(u32::MAX),
    })
}

/// A column of a file beside the calls by function; empty when there is no such file.
fn values(calls: &Path, ending: &str, column: &str) -> Result<BTreeMap<String, f64>, Error> {
    let Some(path) = beside(calls, ending).filter(|path| path.exists()) else {
        return Ok(BTreeMap::new());
    };
    let mut csv = Csv::open(&path)?;
    let (name, column) = (
        csv.column("HashFunction").or_else(|_| csv.column("HashApp"))?,
        csv.column(column)?,
    );
    let mut values = BTreeMap::new();
    while let Some(row) = csv.row()? {
        let value: f64 = csv.number(&row, column)?;
        values.insert(csv.field(&row, name)?.to_owned(), value);
    }
    Ok(values)
}

fn beside(calls: &Path, ending: &str) -> Option<PathBuf> {
    let name = calls.file_name()?.to_str()?;
    let (stem, rest) = name.split_once(CALLS)?;
    Some(calls.with_file_name(format!("{stem}{ending}{rest}")))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_trace_is_read_with_what_is_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x_inv.csv.gz");
        let mut file =
            flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
        file.write_all(b"HashFunction,HashOwner,minute_1,minute_2\r\na,o,0,3\r\nb,o,1,0\r\n")
            .unwrap();
        file.finish().unwrap();
        let run = directory.path().join("x_run.csv.gz");
        std::fs::write(&run, "HashFunction,Average,Count\nb,12.5,1\n").unwrap();
        let trace = read(&path).unwrap();
        assert_eq!(trace.minutes, 2);
        assert_eq!(trace.functions[0].calls, [(1, 3)]);
        assert_eq!(trace.functions[0].duration_ms, DURATION_MS);
        assert_eq!(trace.functions[1].duration_ms, 12.5);
        assert_eq!(trace.functions[1].memory_mib, MEMORY_MIB);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x_inv.csv");
        std::fs::write(&path, "HashFunction,minute_1\na,many\n").unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("x_inv.csv, line 2: field 2"), "{said}");
        std::fs::write(&path, "HashFunction\na\n").unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("minute_1"), "{said}");
    }
}
