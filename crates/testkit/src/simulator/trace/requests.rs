//! Requests to language models, one after another: Azure's trace of 2023, and arrivals made from `ServeGen`'s rates.
//!
//! Azure (Patel et al., "Splitwise", ISCA 2024): `TIMESTAMP,ContextTokens,GeneratedTokens`, one row a request.
//! `ServeGen` (arXiv 2505.09999): `client,t_s,rate_rps,cv,pattern,arg1,arg2`, one row a client and window of ten
//! minutes; requests of a client come by a renewal process whose intervals are distributed as the row says (Gamma with
//! the row's coefficient of variation, or Weibull with the shape `arg1`), with the row's rate as their mean.

use std::path::Path;

use tram_types::Timestamp;

use super::{Csv, Error};
use crate::simulator::Rng;

/// Seconds of a `ServeGen` window.
const WINDOW_SECONDS: f64 = 600.0;
/// Requests made from rates, at most: a day of the largest pool at full rate is a hundred million.
const REQUESTS_MAX: usize = 20_000_000;
/// Lengths of requests whose trace does not tell them: log-normal with the median and mean of Azure's conversations
/// (1,020 and 1,155 tokens in, 129 and 211 out).
const INPUT: (f64, f64) = (1_020.0, 1_155.0);
const OUTPUT: (f64, f64) = (129.0, 211.0);

/// One request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Seconds since the first request or the start of the trace.
    pub at: f64,
    /// Tokens that are read.
    pub input: f64,
    /// Tokens that are written.
    pub output: f64,
}

/// Whether a file's header is that of Azure's trace.
pub(crate) fn is_azure(csv: &Csv) -> bool {
    csv.has("TIMESTAMP") && csv.has("ContextTokens")
}

/// Whether a file's header is that of `ServeGen`'s rates.
pub(crate) fn is_servegen(csv: &Csv) -> bool {
    csv.has("rate_rps") && csv.has("pattern")
}

/// Reads Azure's trace.
///
/// # Errors
/// When the file cannot be read, or is none.
pub fn azure(path: &Path) -> Result<Vec<Request>, Error> {
    let mut csv = Csv::open(path)?;
    let (at, input) = (csv.column("TIMESTAMP")?, csv.column("ContextTokens")?);
    let output = csv.column("GeneratedTokens")?;
    let mut requests: Vec<Request> = Vec::new();
    let mut first: Option<Timestamp> = None;
    while let Some(row) = csv.row()? {
        let text = csv.field(&row, at)?;
        let instant: Timestamp = format!("{}Z", text.replace(' ', "T"))
            .parse()
            .map_err(|_| csv.wrong(format!("`{text}` is no time")))?;
        let start = *first.get_or_insert(instant);
        requests.push(Request {
            at: instant.since(start).as_secs_f64(),
            input: csv.number(&row, input)?,
            output: csv.number(&row, output)?,
        });
    }
    requests.sort_by(|a, b| a.at.total_cmp(&b.at));
    Ok(requests)
}

/// Makes requests from `ServeGen`'s rates, each rate times `scale`.
///
/// # Errors
/// When the file cannot be read, or is none, or asks for too many requests.
pub fn servegen(path: &Path, scale: f64, seed: u64) -> Result<Vec<Request>, Error> {
    let mut csv = Csv::open(path)?;
    let columns = ["client", "t_s", "rate_rps", "cv", "pattern", "arg1"].map(|name| csv.column(name));
    let [client, start, rate, cv, pattern, shape] = columns;
    let (client, start, rate) = (client?, start?, rate?);
    let (cv, pattern, shape) = (cv?, pattern?, shape?);
    let seeds = Rng::new(seed);
    let mut requests = Vec::new();
    let mut row_number = 0u64;
    while let Some(row) = csv.row()? {
        row_number += 1;
        let mut rng = seeds.stream(row_number ^ csv.number::<u64>(&row, client)?.rotate_left(32));
        let (start, rate): (f64, f64) = (csv.number(&row, start)?, csv.number(&row, rate)?);
        let (rate, cv): (f64, f64) = (rate * scale, csv.number(&row, cv)?);
        if rate.is_nan() || rate <= 0.0 {
            continue;
        }
        let mean = 1.0 / rate;
        let weibull = csv.field(&row, pattern)? == "Weibull";
        let shape: f64 = csv.number(&row, shape)?;
        let interval = |rng: &mut Rng| {
            if weibull && shape > 0.0 {
                rng.weibull(shape, mean / gamma(1.0 + 1.0 / shape))
            } else if cv > 0.0 {
                rng.gamma(1.0 / (cv * cv), mean * cv * cv)
            } else {
                rng.exponential(mean)
            }
        };
        // The window begins somewhere within an interval.
        let mut at = interval(&mut rng) * rng.uniform();
        while at < WINDOW_SECONDS {
            let (input, output) = (length(&mut rng, INPUT), length(&mut rng, OUTPUT));
            requests.push(Request {
                at: start + at,
                input,
                output,
            });
            at += interval(&mut rng);
        }
        if requests.len() > REQUESTS_MAX {
            return Err(csv.wrong(format!(
                "the rates come to more than {REQUESTS_MAX} requests: give a smaller --scale"
            )));
        }
    }
    requests.sort_by(|a, b| a.at.total_cmp(&b.at));
    Ok(requests)
}

fn length(rng: &mut Rng, (median, mean): (f64, f64)) -> f64 {
    let sigma = (2.0 * (mean / median).ln()).sqrt();
    rng.log_normal(median, sigma).ceil()
}

/// The gamma function for arguments above 1/2 (Lanczos, g = 7, the coefficients of Godfrey).
fn gamma(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let terms = COEFFICIENTS
        .iter()
        .zip(1u8..)
        .map(|(it, index)| it / (x + f64::from(index)));
    let sum = 0.999_999_999_999_809_9 + terms.sum::<f64>();
    let t = x + 7.5;
    (2.0 * std::f64::consts::PI).sqrt() * t.powf(x + 0.5) * (-t).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn azures_times_count_from_the_first_request() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n\
                    2023-11-16 18:17:05.4799600,3180,8\r\n";
        let requests = azure(file(text).path()).unwrap();
        assert_eq!(requests.len(), 2);
        assert!((requests[1].at - 1.5).abs() < 1e-6);
        assert_eq!((requests[1].input, requests[1].output), (3180.0, 8.0));
        let wrong = azure(file("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n").path()).unwrap_err();
        assert!(wrong.to_string().contains("`noon` is no time"), "{wrong}");
    }

    #[test]
    fn rates_become_requests_at_that_rate() {
        let text = "client,t_s,rate_rps,cv,pattern,arg1,arg2\n0,0,5.0,1.5,Gamma,0.44,0.45\n1,600,5.0,1.0,Weibull,0.8,1.0\n";
        let requests = servegen(file(text).path(), 2.0, 1).unwrap();
        let (first, second) = requests.split_at(requests.partition_point(|it| it.at < 600.0));
        for part in [first, second] {
            assert!((5_000..7_000).contains(&part.len()), "{}", part.len());
        }
        assert_eq!(requests, servegen(file(text).path(), 2.0, 1).unwrap(), "seeded");
    }

    #[test]
    fn the_gamma_function_is_one() {
        for (x, expected) in [(1.0, 1.0), (2.0, 1.0), (5.0, 24.0), (1.5, 0.886_226_925_452_758)] {
            assert!((gamma(x) / expected - 1.0).abs() < 1e-9, "{x}");
        }
    }
}
