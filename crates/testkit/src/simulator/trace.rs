//! Reads traces of real clouds: CSV, plain or compressed with gzip, as their publishers wrote them.
//!
//! Traces are not part of the project; docs/concepts/simulator.md says where they come from and under which licences.

pub mod azure_functions;
pub mod mooncake;
pub mod requests;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use super::Error;

/// Bytes of a trace after decompression. The largest published one that is read here has a few hundred MiB; more is
/// a mistake or a bomb.
const SIZE_MAX: u64 = 2 << 30;
/// How a gzip file begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The text of a trace, decompressed where it must be.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead>, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let gzip = file.fill_buf().map_err(failed)?.starts_with(&GZIP_MAGIC);
    Ok(if gzip {
        Box::new(BufReader::new(
            flate2::bufread::MultiGzDecoder::new(file).take(SIZE_MAX),
        ))
    } else {
        Box::new(file.take(SIZE_MAX))
    })
}

/// The lines of a CSV file without quoting, one after another.
pub(crate) struct Csv {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    columns: BTreeMap<String, usize>,
    line: usize,
}

impl std::fmt::Debug for Csv {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Csv")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Csv {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let reader = open(path)?;
        let mut csv = Self {
            path: path.to_owned(),
            reader,
            columns: BTreeMap::new(),
            line: 0,
        };
        let Some(header) = csv.row()? else {
            return Err(csv.wrong("the file is empty".to_owned()));
        };
        let columns = header.into_iter().enumerate();
        csv.columns = columns.map(|(index, name)| (name, index)).collect();
        Ok(csv)
    }

    /// The next line's fields; `None` at the end.
    pub(crate) fn row(&mut self) -> Result<Option<Vec<String>>, Error> {
        let mut text = String::new();
        let read = self.reader.read_line(&mut text).map_err(|source| Error::Read {
            path: self.path.clone(),
            source,
        })?;
        self.line += 1;
        let text = text.trim_end();
        Ok((read > 0 && !text.is_empty()).then(|| text.split(',').map(str::to_owned).collect()))
    }

    /// Whether there is a column of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.columns.contains_key(name)
    }

    /// Where a column is.
    pub(crate) fn column(&self, name: &str) -> Result<usize, Error> {
        let known = self.columns.get(name).copied();
        known.ok_or_else(|| self.wrong(format!("there is no column `{name}`")))
    }

    /// A field of the line that was read last.
    pub(crate) fn field<'r>(&self, row: &'r [String], column: usize) -> Result<&'r str, Error> {
        row.get(column)
            .map(String::as_str)
            .ok_or_else(|| self.wrong(format!("there is no field {}", column + 1)))
    }

    /// A number in the line that was read last.
    pub(crate) fn number<T: std::str::FromStr>(&self, row: &[String], column: usize) -> Result<T, Error> {
        let text = self.field(row, column)?;
        text.parse().map_err(|_| {
            self.wrong(format!(
                "field {} is no number in its range: `{text}`",
                column + 1
            ))
        })
    }

    /// What is wrong with the line that was read last.
    pub(crate) fn wrong(&self, what: String) -> Error {
        Error::Format {
            path: self.path.clone(),
            line: self.line,
            what,
        }
    }
}
