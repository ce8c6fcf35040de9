//! The header of a model's file: reading it must not panic, nor take time or memory beyond the file's own length, and a
//! file that is read holds what it says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tram_model::{Gguf, memory};

fuzz_target!(|data: &[u8]| {
    let size = data.len() as u64;
    let Ok(model) = Gguf::read(data, size) else {
        return;
    };
    assert!(!model.architecture.is_empty() && !model.quantization.is_empty());
    // The smallest type has 256 elements in 50 bytes.
    assert!(model.parameters / 6 <= size, "more parameters than the file can hold");
    assert!(memory::needed_by(&model, size, 0) >= size);
});
