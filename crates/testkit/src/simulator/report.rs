//! What a simulation found: tables of figures and plots, free of any form.
//!
//! The command prints the tables or gives them as JSON; [`super::html`] makes a page of everything.

/// What a simulation found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// What was simulated, in a few words.
    pub title: String,
    /// What has to be known to read the figures, a sentence each.
    pub notes: Vec<String>,
    /// The figures.
    pub tables: Vec<Table>,
    /// The curves.
    pub plots: Vec<Plot>,
}

/// Figures: one row a policy, one column a quantity.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What it compares.
    pub title: String,
    /// The quantities.
    pub columns: Vec<Column>,
    /// The policies with their figures, as many as there are columns.
    pub rows: Vec<(String, Vec<f64>)>,
}

/// One quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name for programs, with the unit as its ending.
    pub key: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// Digits shown after the point.
    pub decimals: usize,
}

impl Column {
    /// A quantity.
    #[must_use]
    pub const fn new(key: &'static str, title: &'static str, decimals: usize) -> Self {
        Self { key, title, decimals }
    }

    /// A figure as people read it; what could not be told is a dash.
    #[must_use]
    pub fn shown(&self, value: f64) -> String {
        if value.is_finite() {
            format!("{value:.*}", self.decimals)
        } else {
            "-".to_owned()
        }
    }
}

impl Table {
    /// A figure by the names of its row and column.
    #[must_use]
    pub fn figure(&self, row: &str, key: &str) -> Option<f64> {
        let column = self.columns.iter().position(|column| column.key == key)?;
        let (_, values) = self.rows.iter().find(|(name, _)| name == row)?;
        values.get(column).copied()
    }
}

/// Curves or points over one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// What the horizontal axis counts, with its unit.
    pub x: String,
    /// What the vertical axis counts, with its unit.
    pub y: String,
    /// Whether each point stands for itself and is marked.
    pub scattered: bool,
    /// The curves by name.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}
