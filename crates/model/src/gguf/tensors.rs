//! The tensors of a GGUF: that each lies within the file, and what they are together.

use std::collections::BTreeMap;
use std::io::Read;

use super::reader::{Reader, at_most, shown};
use super::{Error, limits};

/// What the tensors are together.
#[derive(Debug)]
pub(super) struct Tensors {
    pub(super) elements: u64,
    /// The type that has most bytes.
    pub(super) main_type: String,
}

/// Types of elements that files have: number, name, elements in a block, bytes of a block; as `ggml.h` and
/// `ggml-common.h` define them.
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
];

/// Reads what comes after the keys: `count` tensors, and checks them against a file of `size_bytes`.
pub(super) fn read(
    reader: &mut Reader<impl Read>,
    count: u64,
    alignment: u64,
    size_bytes: u64,
) -> Result<Tensors, Error> {
    if alignment == 0 || !alignment.is_power_of_two() || alignment > limits::ALIGNMENT_MAX {
        return Err(Error::Invalid(format!(
            "its tensors are aligned to {alignment} bytes"
        )));
    }
    if count == 0 {
        return Err(Error::Invalid("it has no tensors".to_owned()));
    }
    let (mut elements, mut bytes_of_all, mut end) = (0_u64, 0_u64, 0_u64);
    let mut bytes_of: BTreeMap<&str, u64> = BTreeMap::new();
    for _ in 0..count {
        let tensor = tensor(reader, alignment)?;
        elements = elements.saturating_add(tensor.elements);
        bytes_of_all = bytes_of_all.saturating_add(tensor.bytes);
        end = end.max(tensor.end);
        let bytes = bytes_of.entry(tensor.type_name).or_default();
        *bytes = bytes.saturating_add(tensor.bytes);
    }
    let needed = reader.position().next_multiple_of(alignment).saturating_add(end);
    if needed > size_bytes {
        return Err(Error::Short {
            needed,
            has: size_bytes,
        });
    }
    if bytes_of_all > end {
        return Err(Error::Invalid("its tensors lie over each other".to_owned()));
    }
    let main_type = bytes_of.into_iter().max_by_key(|(_, bytes)| *bytes);
    Ok(Tensors {
        elements,
        main_type: main_type.map(|(name, _)| name.to_owned()).unwrap_or_default(),
    })
}

struct Tensor {
    elements: u64,
    type_name: &'static str,
    bytes: u64,
    /// Where it ends, from where the data starts.
    end: u64,
}

fn tensor(reader: &mut Reader<impl Read>, alignment: u64) -> Result<Tensor, Error> {
    const WHAT: &str = "the list of its tensors";
    let name = reader.string(WHAT, limits::TENSOR_NAME_BYTES_MAX)?;
    let wrong = |what: String| Error::Invalid(format!("tensor `{}` {what}", shown(&name)));
    let dimensions = reader.u32(WHAT)?;
    at_most(
        "the number of a tensor's dimensions",
        dimensions.into(),
        limits::DIMENSIONS_MAX.into(),
    )?;
    let (mut elements, mut row) = (1_u64, 1_u64);
    for index in 0..dimensions {
        let length = reader.u64(WHAT)?;
        if index == 0 {
            row = length;
        }
        elements = elements
            .checked_mul(length)
            .ok_or_else(|| wrong("has more elements than can be counted".to_owned()))?;
    }
    let (number, offset) = (reader.u32(WHAT)?, reader.u64(WHAT)?);
    let Some((_, type_name, block, block_bytes)) = TYPES.iter().find(|known| known.0 == number) else {
        return Err(wrong(format!("has elements of the unknown type {number}")));
    };
    if row % block != 0 {
        return Err(wrong(format!(
            "has rows of {row} elements, which {type_name} cannot have"
        )));
    }
    if offset % alignment != 0 {
        return Err(wrong(format!("starts at {offset}, which is not aligned")));
    }
    let bytes = (elements / block).checked_mul(*block_bytes);
    let end = bytes.and_then(|bytes| bytes.checked_add(offset));
    match (bytes, end) {
        (Some(bytes), Some(end)) => Ok(Tensor {
            elements,
            type_name,
            bytes,
            end,
        }),
        _ => Err(wrong("is larger than any file".to_owned())),
    }
}
