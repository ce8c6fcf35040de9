//! `tram simulate`: runs the simulator and shows its report as tables, as JSON, or as a page.

use anyhow::Context;
use serde_json::{Map, Value, json};
use tram_cli::{Output, Printer, SimulateArguments};
use tram_testkit::simulator::{
    self, Options,
    report::{Report, Table},
};

/// Carries out the command.
///
/// # Errors
/// With what is wrong with the trace or the arguments, for the user.
pub fn run(arguments: &SimulateArguments, printer: &Printer) -> anyhow::Result<()> {
    let report = simulator::run(&Options {
        trace: arguments.trace.clone(),
        policy: arguments.policy.clone(),
        seed: arguments.seed,
        services: arguments.services,
        machines: arguments.machines,
        scale: arguments.scale,
        load_seconds: arguments.load_seconds,
        choose: |loads, rotation| tram_edge::choose(loads.len(), rotation, |index| loads[index], |_| true),
    })
    .context("cannot simulate")?;
    if let Some(path) = &arguments.report {
        std::fs::write(path, simulator::html::page(&report))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if printer.output() == Output::Table {
        printer.note(&report.title);
        for note in &report.notes {
            printer.note(note);
        }
        for table in &report.tables {
            printer.data(format_args!("{}\n", text(table)))?;
        }
        return Ok(());
    }
    Ok(printer.value(&value(&report), String::new)?)
}

fn text(table: &Table) -> String {
    let titles = table.columns.iter().map(|column| column.title.to_uppercase());
    let header: Vec<String> = std::iter::once(table.title.to_uppercase())
        .chain(titles)
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let rows = table.rows.iter().map(|(name, values)| {
        let values = table.columns.iter().zip(values);
        let shown = values.map(|(column, value)| column.shown(*value));
        std::iter::once(name.clone()).chain(shown).collect()
    });
    tram_cli::columns(Some(&header), rows)
}

/// The figures for programs. Those that could not be told are null.
fn value(report: &Report) -> Value {
    let tables: Vec<Value> = report.tables.iter().map(table_value).collect();
    json!({ "title": report.title, "notes": report.notes, "tables": tables })
}

fn table_value(table: &Table) -> Value {
    let rows = table.rows.iter().map(|(name, values)| {
        let mut row = Map::new();
        row.insert("name".to_owned(), json!(name));
        for (column, value) in table.columns.iter().zip(values) {
            row.insert(column.key.to_owned(), json!(value));
        }
        Value::Object(row)
    });
    json!({ "title": table.title, "rows": rows.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use tram_testkit::simulator::report::Column;

    use super::*;

    #[test]
    fn a_table_is_shown_and_told_with_its_units() {
        let table = Table {
            title: "Policies".to_owned(),
            columns: vec![
                Column::new("slow_percent", "slow %", 2),
                Column::new("hours", "hours", 0),
            ],
            rows: vec![
                ("fixed-10".to_owned(), vec![3.586, 5_574.2]),
                ("none".to_owned(), vec![f64::NAN, 0.0]),
            ],
        };
        assert_eq!(
            text(&table),
            "POLICIES  SLOW %  HOURS\nfixed-10  3.59    5574\nnone      -       0"
        );
        let expected = json!({ "title": "Policies", "rows": [
            { "name": "fixed-10", "slow_percent": 3.586, "hours": 5574.2 },
            { "name": "none", "slow_percent": null, "hours": 0.0 },
        ]});
        assert_eq!(table_value(&table), expected);
    }
}
