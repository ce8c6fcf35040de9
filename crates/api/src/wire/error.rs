//! What a call that failed answers, as the OpenAPI document describes it; [`crate::Error`] writes it.

tram_types::message! {
    /// Why a call failed.
    pub struct Error {
        pub status: i64,
        pub code: String,
        pub message: String,
    }

    /// Why a call failed whose body or query breaks rules.
    pub struct ErrorWithFields {
        pub status: i64,
        pub code: String,
        pub message: String,
        pub fields: Vec<ErrorField>,
    }

    /// One member or parameter that breaks a rule.
    pub struct ErrorField {
        pub field: String,
        pub description: String,
    }
}
