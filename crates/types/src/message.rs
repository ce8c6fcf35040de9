//! The JSON flavour of the wire contract, in one place.
//!
//! Upstream speaks JSON as grpc-gateway writes it: every member is present, `null` means "the default", 64-bit
//! integers are strings, members of a `oneof` are left out when unset. The [`message!`](crate::message!) macro
//! declares a struct with these rules; [`wire_enum!`](crate::wire_enum!) an enumeration.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One thing wrong with one member of a request: what clients get in `fields` of an error body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldViolation {
    /// Dotted path with indexes, such as `definition.env.0.key`.
    pub field: String,
    /// What is wrong and what would be right.
    pub description: String,
}

impl FieldViolation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            description: description.into(),
        }
    }
}

/// Reads a member that may be missing, `null` or a value; the first two give the type's default.
///
/// # Errors
/// When a value is there and is not of the type.
pub fn value<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A 64-bit integer: a JSON string when written, a string or a number when read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Int64(pub i64);

impl Serialize for Int64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Int64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) if text.is_empty() => Ok(Self(0)),
            Either::Text(text) => text
                .parse()
                .map(Self)
                .map_err(|_| serde::de::Error::custom(format!("`{text}` is not a 64-bit integer"))),
        }
    }
}

impl utoipa::PartialSchema for Int64 {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::Custom("int64".to_owned())))
            .into()
    }
}

impl utoipa::ToSchema for Int64 {
    fn name() -> std::borrow::Cow<'static, str> {
        std::borrow::Cow::Borrowed("int64")
    }
}

/// Declares a struct of the wire contract: every member is always written, and a missing member or `null` reads as
/// the default. Mark members of a `oneof` with `#[serde(skip_serializing_if = "Option::is_none")]`.
#[macro_export]
macro_rules! message {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$member_meta:meta])* pub $member:ident: $type:ty ),* $(,)? }
    )+) => {$(
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[serde(default)]
        $(#[$meta])*
        pub struct $name {
            $(
                $(#[$member_meta])*
                #[serde(deserialize_with = "tram_types::message::value")]
                pub $member: $type,
            )*
        }
    )+};
}

/// Declares an enumeration of the wire contract: exact strings, a default, and nothing else accepted. `as "A.B"` after
/// the name is what the OpenAPI document calls it; without it, the name of the type.
///
/// The schema is written here and not derived: the derive does not see a rename that comes out of a macro, and would
/// give the names of the variants.
#[macro_export]
macro_rules! wire_enum {
    (@schema_name $name:ident) => { stringify!($name) };
    (@schema_name $name:ident $schema:literal) => { $schema };
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident $(as $schema:literal)? {
            $( $(#[$variant_meta:meta])* $variant:ident = $wire:literal ),+ $(,)?
        }
    )+) => {$(
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        $(#[$meta])*
        pub enum $name {
            $( $(#[$variant_meta])* #[serde(rename = $wire)] $variant, )+
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::schema::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some([$( $wire ),+]))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                std::borrow::Cow::Borrowed($crate::wire_enum!(@schema_name $name $($schema)?))
            }
        }

        impl $name {
            /// Every member, in the order of the contract.
            pub const ALL: &'static [Self] = &[$( Self::$variant ),+];

            /// The exact string on the wire and in the database.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $wire ),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::message::UnknownMember;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|member| member.as_str() == text).ok_or_else(|| {
                    $crate::message::UnknownMember {
                        given: text.chars().take(64).collect(),
                        allowed: Self::ALL.iter().map(|member| member.as_str()).collect(),
                    }
                })
            }
        }
    )+};
}

/// A string that is no member of an enumeration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not one of {}", .allowed.join(", "))]
pub struct UnknownMember {
    /// The text that was given.
    pub given: String,
    /// What would have been accepted.
    pub allowed: Vec<&'static str>,
}

#[cfg(test)]
mod tests {
    use utoipa::{PartialSchema as _, ToSchema as _};

    use crate::status::{AppStatus, MeshScope};

    #[test]
    fn an_enumeration_describes_itself_by_the_strings_of_the_wire() {
        assert_eq!(AppStatus::name(), "App.Status");
        assert_eq!(MeshScope::name(), "MeshScope");
        let schema = serde_json::to_value(AppStatus::schema()).unwrap();
        assert_eq!(schema["type"], "string");
        let members: Vec<&str> = AppStatus::ALL.iter().map(|member| member.as_str()).collect();
        assert_eq!(schema["enum"], serde_json::json!(members));
    }
}
