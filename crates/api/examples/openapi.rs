//! Prints the OpenAPI document that the code defines, for `tests/openapi/compare.py`.

use std::io::Write as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let document = tram_api::openapi("http://localhost:8080");
    let mut out = std::io::stdout().lock();
    out.write_all(document.to_pretty_json()?.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}
