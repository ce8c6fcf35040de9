//! A report as one page: no scripts, nothing fetched, light or dark as the reader's screen is.
//!
//! Plots are inline SVG whose colours come from the page's style, so both appearances are one picture.

use std::fmt::Write as _;

use super::report::{Plot, Report, Table};

/// The drawing area of a plot and the room around it for ticks and titles, in pixels.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Ticks of an axis, about.
const TICKS: f64 = 5.0;
/// Curves told apart by colour; more begin anew, with another dash.
const COLOURS: usize = 8;
/// Lines of a legend that fit beside a plot.
const LEGEND_MAX: usize = 14;
/// Height of a line of the legend.
const LEGEND_LINE: f64 = 18.0;
/// Colours and letters of the page; the eight hues are those of Okabe and Ito, which colour-blind readers tell apart.
const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1a1d21;--soft:#667;--line:#d5d9de;--paper:#fff;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#cc79a7;--c4:#b58900;--c5:#56b4e9;--c6:#8a5a00;--c7:#5f6b77}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ea;--soft:#9aa4ae;--line:#363c43;--paper:#14171a;
--c0:#4aa8e0;--c1:#f0883e;--c2:#2fbf94;--c3:#e29cc4;--c4:#e0b400;--c5:#8fd0f5;--c6:#c9914a;--c7:#a8b3bd}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;
padding:0 1rem}h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}p{color:var(--soft);margin:.2rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .8rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}
text{fill:var(--soft);font-size:11px}.axis{stroke:var(--line);stroke-width:1}
";

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut page = String::new();
    let title = escaped(&report.title);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    );
    for note in &report.notes {
        let _ = writeln!(page, "<p>{}</p>", escaped(note));
    }
    for table in &report.tables {
        write_table(&mut page, table);
    }
    for plot in &report.plots {
        write_plot(&mut page, plot);
    }
    page.push_str("</body></html>\n");
    page
}

fn write_table(page: &mut String, table: &Table) {
    let _ = write!(page, "<h2>{}</h2>\n<table><tr><th></th>", escaped(&table.title));
    for column in &table.columns {
        let _ = write!(page, "<th>{}</th>", escaped(column.title));
    }
    page.push_str("</tr>\n");
    for (name, values) in &table.rows {
        let _ = write!(page, "<tr><td>{}</td>", escaped(name));
        for (column, value) in table.columns.iter().zip(values) {
            let _ = write!(page, "<td>{}</td>", column.shown(*value));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

/// An axis from 0 to a round figure above all values.
struct Axis {
    step: f64,
    end: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let rough = if most > 0.0 { most / TICKS } else { 1.0 / TICKS };
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        Self {
            step,
            end: (most / step).ceil().max(1.0) * step,
        }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let count = (0u8..=20).map(f64::from);
        count
            .map(|index| index * self.step)
            .take_while(|tick| *tick <= self.end * 1.000_001)
    }

    fn words(&self, tick: f64) -> String {
        let decimals = if self.step >= 1.0 {
            0
        } else if self.step >= 0.1 {
            1
        } else {
            3
        };
        format!("{tick:.decimals$}")
    }
}

fn write_plot(page: &mut String, plot: &Plot) {
    let points = || plot.lines.iter().flat_map(|(_, points)| points);
    let (x_axis, y_axis) = (
        Axis::over(points().map(|point| point.0)),
        Axis::over(points().map(|point| point.1)),
    );
    let x = |value: f64| LEFT + value / x_axis.end * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / y_axis.end * (HEIGHT - TOP - BOTTOM);
    let title = escaped(&plot.title);
    let _ = writeln!(
        page,
        "<h2>{title}</h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
    );
    for tick in x_axis.ticks() {
        let _ = writeln!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(tick),
            HEIGHT - BOTTOM + 16.0,
            x_axis.words(tick)
        );
    }
    for tick in y_axis.ticks() {
        let (level, end, words) = (y(tick), WIDTH - RIGHT, y_axis.words(tick));
        let _ = writeln!(
            page,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{end:.1}\" y1=\"{level:.1}\" y2=\"{level:.1}\"/><text \
             x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{words}</text>",
            LEFT - 6.0,
            level + 4.0
        );
    }
    let (middle, below, half) = (
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0,
        (TOP + HEIGHT - BOTTOM) / 2.0,
    );
    let (x_title, y_title) = (escaped(&plot.x), escaped(&plot.y));
    let _ = writeln!(
        page,
        "<text x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{x_title}</text><text x=\"14\" \
         y=\"{half:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {half:.1})\">{y_title}</text>"
    );
    for (index, (name, points)) in plot.lines.iter().enumerate() {
        write_line(
            page,
            index,
            name,
            plot.scattered,
            points.iter().map(|point| (x(point.0), y(point.1))),
        );
    }
    if plot.lines.len() > LEGEND_MAX {
        let _ = writeln!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\">and {} more</text>",
            WIDTH - RIGHT + 34.0,
            TOP + LEGEND_LINE * LEGEND_MAX as f64 + 4.0,
            plot.lines.len() - LEGEND_MAX
        );
    }
    page.push_str("</svg>\n");
}

fn write_line(
    page: &mut String,
    index: usize,
    name: &str,
    dots: bool,
    points: impl Iterator<Item = (f64, f64)>,
) {
    let colour = index % COLOURS;
    let dash = (index / COLOURS) * 3;
    let mut path = String::new();
    let mut marks = String::new();
    for (x, y) in points {
        let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
        if dots {
            let _ = write!(
                marks,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"var(--c{colour})\"/>"
            );
        }
    }
    let stroke =
        format!("fill=\"none\" stroke=\"var(--c{colour})\" stroke-width=\"1.6\" stroke-dasharray=\"{dash}\"");
    let name = escaped(name);
    let _ = writeln!(
        page,
        "<path d=\"{path}\" {stroke}><title>{name}</title></path>{marks}"
    );
    if index < LEGEND_MAX {
        let y = TOP + LEGEND_LINE * index as f64;
        let left = WIDTH - RIGHT + 12.0;
        let _ = writeln!(
            page,
            "<path d=\"M{left:.1} {y:.1}h16\" {stroke}/><text x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
            left + 22.0,
            y + 4.0
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::report::Column;

    #[test]
    fn a_page_holds_every_figure_and_fetches_nothing() {
        let report = Report {
            title: "a < b".to_owned(),
            notes: vec!["a note".to_owned()],
            tables: vec![Table {
                title: "t".to_owned(),
                columns: vec![Column::new("x", "x", 2)],
                rows: vec![
                    ("one".to_owned(), vec![1.234]),
                    ("none".to_owned(), vec![f64::NAN]),
                ],
            }],
            plots: vec![Plot {
                title: "p".to_owned(),
                x: "s".to_owned(),
                y: "n".to_owned(),
                scattered: true,
                lines: vec![("curve".to_owned(), vec![(0.0, 0.0), (10.0, 5.0)])],
            }],
        };
        let page = page(&report);
        for part in [
            "a &lt; b",
            "a note",
            "<td>1.23</td>",
            "<td>-</td>",
            "curve",
            "<circle",
            "prefers-color-scheme",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        for part in ["<script", "http:", "https:", "NaN"] {
            assert!(!page.contains(part), "{part} in {page}");
        }
    }

    #[test]
    fn an_axis_ends_at_a_round_figure() {
        let axis = Axis::over([3.0, 87.0].into_iter());
        assert_eq!(
            axis.ticks().collect::<Vec<_>>(),
            [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
        );
        let flat = Axis::over(std::iter::empty());
        assert!(flat.end > 0.0 && flat.ticks().count() > 1);
    }
}
