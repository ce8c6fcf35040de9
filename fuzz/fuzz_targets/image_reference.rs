//! Image references: whatever is accepted says the same when it is written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tram_image::Reference;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let again: Reference = reference
        .to_string()
        .parse()
        .expect("the full form of a reference is a reference");
    assert_eq!(again, reference);
    let familiar: Reference = reference
        .familiar()
        .parse()
        .expect("the short form of a reference is a reference");
    assert_eq!(familiar, reference, "the short form means something else");
    // Both become parts of a path at the registry: none may lead out of it.
    let (repository, target) = (reference.repository(), reference.target());
    assert!(repository.split('/').all(|part| !part.is_empty() && !part.starts_with('.')));
    assert!(!target.contains('/') && !target.starts_with('.'));
    assert!(!reference.registry().is_empty() && !reference.repository().is_empty());
});
