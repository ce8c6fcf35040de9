//! How much of anything is taken: each bound is far above every published model, and stops a file that would have this
//! machine read or keep without end.

/// Where tensors start when the file does not say.
pub(super) const ALIGNMENT_DEFAULT: u64 = 32;
/// Files align to 32 or 64 bytes; a page is the most that could ever help.
pub(super) const ALIGNMENT_MAX: u64 = 64 * 1024;
/// Bytes before the tensors' data: vocabularies of 256 thousand tokens with their merges take about 20 MB.
pub(super) const HEADER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Keys: real files have 20 to 80.
pub(super) const KEYS_MAX: u64 = 4096;
/// Bytes of a key: the format has room for 65,535, and every key is kept until the end of the header.
pub(super) const KEY_BYTES_MAX: u64 = 512;
/// Bytes of a text that is kept; longer ones, such as templates, are known to be there and skipped.
pub(super) const KEPT_TEXT_BYTES_MAX: u64 = 256;
/// Numbers of a list that is kept: one for each layer. Longer ones, such as vocabularies, are skipped.
pub(super) const KEPT_LIST_MAX: u64 = 1024;
/// Tensors: the largest mixtures of experts have a few thousand.
pub(super) const TENSORS_MAX: u64 = 65_536;
/// Bytes of a tensor's name; ggml itself has room for 64.
pub(super) const TENSOR_NAME_BYTES_MAX: u64 = 256;
/// Dimensions of a tensor, as ggml has it.
pub(super) const DIMENSIONS_MAX: u32 = 4;
