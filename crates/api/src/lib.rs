//! The REST contract and its handlers.
