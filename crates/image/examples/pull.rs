//! Pulls an image into a store and says where its layers are: `cargo run --example pull -- DIRECTORY IMAGE`.
//!
//! With a path to an archive in the place of the name, imports it instead.

#![expect(clippy::print_stdout, reason = "a program to try things by hand")]

use std::path::Path;
use std::time::Instant;

use tram_image::{ImageStore, Progress, PullPolicy, PullRequest, Settings};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(image)) = (arguments.next(), arguments.next()) else {
        return Err("usage: pull DIRECTORY IMAGE-OR-ARCHIVE".into());
    };
    let store = ImageStore::open(directory, Settings::default())?;
    let (progress, _) = Progress::channel();
    let started = Instant::now();
    let reference = if Path::new(&image).is_file() {
        let imported = store.import_file(Path::new(&image), None, &progress).await?;
        imported
            .into_iter()
            .next()
            .ok_or("the archive is empty")?
            .reference
    } else {
        image.parse()?
    };
    let request = PullRequest::new(reference).policy(PullPolicy::IfNotPresent);
    let image = store
        .ensure(&request, &progress)
        .await
        .map_err(|error| error.user_message())?;
    println!(
        "{} ({:?}, {} bytes)",
        image.reference,
        started.elapsed(),
        image.size_bytes
    );
    for layer in &image.layers {
        println!("{}", layer.display());
    }
    Ok(())
}
