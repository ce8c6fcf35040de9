//! Parameters of a query, read by the rules of the contract.
//!
//! Lists come as repeated keys, numbers as text, and an empty parameter is an absent one (one official client sends
//! every filter it has, empty or not). [`query!`](crate::query) declares the parameters of an endpoint once: how
//! they are read and how the OpenAPI document describes them come from the same lines.

use std::{fmt::Display, str::FromStr};

use tram_types::{FieldViolation, status};
use utoipa::{
    PartialSchema,
    openapi::{
        RefOr, Required,
        path::{Parameter as Description, ParameterBuilder, ParameterIn},
        schema::{ArrayBuilder, Schema},
    },
};

/// Entries a page has when the client does not say. Clients ask for 100 themselves; one that does not page at all
/// still sees what a small installation has.
pub(crate) const DEFAULT_LIMIT: i64 = 100;
/// Most entries of a page: bounds the memory of one answer.
pub(crate) const MAX_LIMIT: i64 = 1000;
/// Most parameters of one query: far above any client's, low enough that reading them stays cheap.
const MAX_PARAMETERS: usize = 1000;

/// The pairs of a query, decoded.
#[derive(Debug, Default)]
pub(crate) struct RawQuery(Vec<(String, String)>);

impl RawQuery {
    pub(crate) fn parse(query: &str) -> Result<Self, FieldViolation> {
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PARAMETERS {
                return Err(FieldViolation::new(
                    "query",
                    format!("may have at most {MAX_PARAMETERS} parameters"),
                ));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key).ok_or_else(|| FieldViolation::new("query", "is not valid UTF-8"))?;
            let value =
                decode(value).ok_or_else(|| FieldViolation::new(key.clone(), "is not valid UTF-8"))?;
            if value.contains('\0') {
                return Err(FieldViolation::new(key, "must not contain a zero byte"));
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    /// Every name that is given.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Every value of `name`, empty ones too: words of a command.
    pub(crate) fn every<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every value of `name` that is not empty.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }
}

/// Undoes percent-encoding and `+` for a space.
fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(byte) = bytes.get(index) {
        let escaped = (*byte == b'%')
            .then(|| text.get(index + 1..index + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(value) => {
                decoded.push(value);
                index += 3;
            }
            None => {
                decoded.push(if *byte == b'+' { b' ' } else { *byte });
                index += 1;
            }
        }
    }
    String::from_utf8(decoded).ok()
}

/// Every parameter of an endpoint's query.
pub(crate) trait Query: Sized + Send {
    /// Reads them; what is wrong goes to `wrong`.
    fn read(query: &RawQuery, wrong: &mut Vec<FieldViolation>) -> Self;
    /// Describes them.
    fn describe() -> Vec<Description>;
    /// Whether they ask for a check that changes nothing: `dry_run`, for the endpoints that have it.
    fn only_checks(&self) -> bool {
        false
    }
}

/// The type of one parameter.
pub(crate) trait Parameter: Sized {
    fn read(name: &str, query: &RawQuery, wrong: &mut Vec<FieldViolation>) -> Self;
    fn describe(name: &str, out: &mut Vec<Description>);
    /// Whether it is a truth value and true.
    fn is_true(&self) -> bool {
        false
    }
}

fn parse<T>(name: &str, text: &str, wrong: &mut Vec<FieldViolation>) -> Option<T>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse()
        .map_err(|error: T::Err| wrong.push(FieldViolation::new(name, error.to_string())))
        .ok()
}

fn description(name: &str, schema: impl Into<RefOr<Schema>>) -> Description {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .schema(Some(schema))
        .build()
}

/// One value of a parameter.
pub(crate) trait Value: FromStr<Err: Display> {
    /// Everything in a URL is text; an enumeration says its members too.
    fn described() -> RefOr<Schema> {
        String::schema()
    }
}

macro_rules! values {
    (text: $($text:ty),+; enumerations: $($enumeration:ty),+ $(,)?) => {
        $(impl Value for $text {})+
        $(impl Value for $enumeration {
            fn described() -> RefOr<Schema> {
                <$enumeration as PartialSchema>::schema()
            }
        })+
    };
}
values! {
    text: String, i64, u16, u32, tram_types::Timestamp, tram_types::AppId, tram_types::ServiceId,
        tram_types::DeploymentId, tram_types::RegionalDeploymentId, tram_types::InstanceId, tram_types::SecretId, tram_types::SnapshotId, tram_types::VolumeId,
        tram_types::InstanceSnapshotId,
        tram_types::DomainId, tram_types::CredentialId, tram_types::ProjectId, tram_types::OrganizationId;
    enumerations: status::AppStatus, status::ServiceStatus, status::ServiceType, status::DeploymentStatus,
        status::RegionalDeploymentStatus, status::InstanceStatus, status::DomainStatus, status::DomainType,
        status::SecretType, status::CredentialType, status::MetricName, status::SnapshotStatus,
        status::PoolClaimStatus, status::InstanceSnapshotStatus, status::InstanceSnapshotType,
}

impl<T: Value> Parameter for Option<T> {
    fn read(name: &str, query: &RawQuery, wrong: &mut Vec<FieldViolation>) -> Self {
        query.all(name).next().and_then(|text| parse(name, text, wrong))
    }

    fn describe(name: &str, out: &mut Vec<Description>) {
        out.push(description(name, T::described()));
    }
}

impl<T: Value> Parameter for Vec<T> {
    fn read(name: &str, query: &RawQuery, wrong: &mut Vec<FieldViolation>) -> Self {
        query
            .all(name)
            .filter_map(|text| parse(name, text, wrong))
            .collect()
    }

    fn describe(name: &str, out: &mut Vec<Description>) {
        out.push(description(name, ArrayBuilder::new().items(T::described())));
    }
}

impl Parameter for bool {
    fn read(name: &str, query: &RawQuery, wrong: &mut Vec<FieldViolation>) -> Self {
        match query.all(name).next() {
            None | Some("false" | "False" | "0") => false,
            Some("true" | "True" | "1") => true,
            Some(other) => {
                wrong.push(FieldViolation::new(
                    name,
                    format!("`{}` is not true or false", shown(other)),
                ));
                false
            }
        }
    }

    fn describe(name: &str, out: &mut Vec<Description>) {
        out.push(description(name, bool::schema()));
    }

    fn is_true(&self) -> bool {
        *self
    }
}

/// The part of a wrong value that is repeated in a message.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Which part of a list is asked for: `limit` and `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) limit: i64,
    pub(crate) offset: i64,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            limit: DEFAULT_LIMIT,
            offset: 0,
        }
    }
}

impl Page {
    /// The part of `all` that is asked for, for lists that are in memory anyway.
    pub(crate) fn of<T>(self, all: Vec<T>) -> Vec<T> {
        let size = |number: i64| usize::try_from(number).unwrap_or(0);
        all.into_iter()
            .skip(size(self.offset))
            .take(size(self.limit))
            .collect()
    }

    /// The same for the store.
    pub(crate) fn stored(self) -> tram_store::filter::Page {
        let number = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
        tram_store::filter::Page {
            limit: number(self.limit),
            offset: number(self.offset),
        }
    }

    /// Whether a list of `count` entries goes on after this page.
    pub(crate) const fn has_next(self, count: i64) -> bool {
        self.offset.saturating_add(self.limit) < count
    }
}

impl Parameter for Page {
    fn read(_name: &str, query: &RawQuery, wrong: &mut Vec<FieldViolation>) -> Self {
        let mut number = |name: &str, least: i64, most: i64| -> Option<i64> {
            let text = query.all(name).next()?;
            match text.parse::<i64>() {
                Ok(value) if (least..=most).contains(&value) => Some(value),
                Ok(_) => {
                    wrong.push(FieldViolation::new(
                        name,
                        format!("must be between {least} and {most}"),
                    ));
                    None
                }
                Err(_) => {
                    wrong.push(FieldViolation::new(
                        name,
                        format!("`{}` is not a whole number", shown(text)),
                    ));
                    None
                }
            }
        };
        // 0 is what a client sends that means "unset".
        let limit = number("limit", 0, MAX_LIMIT).filter(|limit| *limit > 0);
        Self {
            limit: limit.unwrap_or(DEFAULT_LIMIT),
            offset: number("offset", 0, i64::from(u32::MAX)).unwrap_or(0),
        }
    }

    fn describe(_name: &str, out: &mut Vec<Description>) {
        out.push(description("limit", String::schema()));
        out.push(description("offset", String::schema()));
    }
}

/// Which end of a list comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    #[default]
    Descending,
}

impl Order {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ascending => "asc",
            Self::Descending => "desc",
        }
    }

    /// The same for the store.
    pub(crate) const fn stored(self) -> tram_store::filter::Order {
        match self {
            Self::Ascending => tram_store::filter::Order::Ascending,
            Self::Descending => tram_store::filter::Order::Descending,
        }
    }
}

impl Parameter for Order {
    fn read(name: &str, query: &RawQuery, wrong: &mut Vec<FieldViolation>) -> Self {
        match query.all(name).next() {
            None | Some("desc" | "DESC") => Self::Descending,
            Some("asc" | "ASC") => Self::Ascending,
            Some(other) => {
                wrong.push(FieldViolation::new(
                    name,
                    format!("`{}` is not one of asc, desc", shown(other)),
                ));
                Self::Descending
            }
        }
    }

    fn describe(name: &str, out: &mut Vec<Description>) {
        out.push(description(name, String::schema()));
    }
}

/// Declares the parameters of an endpoint's query.
#[macro_export]
#[doc(hidden)]
macro_rules! query {
    ($(
        $(#[$meta:meta])*
        struct $name:ident { $( $(#[$parameter_meta:meta])* $parameter:ident: $type:ty ),* $(,)? }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug)]
        pub(crate) struct $name { $( $(#[$parameter_meta])* pub(crate) $parameter: $type, )* }

        impl $crate::query::Query for $name {
            fn read(
                query: &$crate::query::RawQuery,
                wrong: &mut Vec<tram_types::FieldViolation>,
            ) -> Self {
                let read = Self { $( $parameter: $crate::query::Parameter::read(
                    stringify!($parameter).trim_start_matches("r#"), query, wrong,
                ), )* };
                // Some parameters are accepted, checked and have no effect here.
                $( let _ = &read.$parameter; )*
                read
            }

            fn describe() -> Vec<utoipa::openapi::path::Parameter> {
                let mut out = Vec::new();
                $( <$type as $crate::query::Parameter>::describe(
                    stringify!($parameter).trim_start_matches("r#"), &mut out,
                ); )*
                out
            }

            fn only_checks(&self) -> bool {
                let given = [$( (
                    stringify!($parameter),
                    $crate::query::Parameter::is_true(&self.$parameter),
                ) ),*];
                given.contains(&("dry_run", true))
            }
        }
    )+};
}

/// No parameter at all.
#[derive(Debug)]
pub(crate) struct Nothing;

impl Query for Nothing {
    fn read(_query: &RawQuery, _wrong: &mut Vec<FieldViolation>) -> Self {
        Self
    }

    fn describe() -> Vec<Description> {
        Vec::new()
    }
}

query! {
    /// A part of a list.
    struct Paged {
        page: Page,
    }
}

#[cfg(test)]
mod tests {
    use tram_types::{AppId, status::AppStatus};

    use super::*;

    query! {
        struct Sample {
            page: Page,
            name: Option<String>,
            statuses: Vec<AppStatus>,
            ids: Vec<AppId>,
            dry_run: bool,
            r#type: Option<String>,
        }
    }

    fn read(query: &str) -> (Sample, Vec<String>) {
        let mut wrong = Vec::new();
        let sample = Sample::read(&RawQuery::parse(query).unwrap(), &mut wrong);
        (
            sample,
            wrong.into_iter().map(|violation| violation.field).collect(),
        )
    }

    #[test]
    fn empty_is_absent_and_lists_are_repeated_keys() {
        let (sample, wrong) =
            read("name=&limit=&offset=&statuses=&statuses=HEALTHY&statuses=PAUSED&dry_run=");
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!(sample.name, None);
        assert_eq!(sample.statuses, [AppStatus::Healthy, AppStatus::Paused]);
        assert_eq!(sample.page, Page::default());
        assert!(!sample.dry_run && sample.ids.is_empty());
    }

    #[test]
    fn percent_and_plus_are_decoded() {
        let (sample, _) = read("name=a%20b+c%C3%A9&type=x");
        assert_eq!(sample.name.as_deref(), Some("a b cé"));
        assert_eq!(sample.r#type.as_deref(), Some("x"));
        assert!(RawQuery::parse("name=%FF").is_err());
    }

    #[test]
    fn wrong_values_name_their_parameter() {
        for (query, field) in [
            ("limit=ten", "limit"),
            ("limit=1001", "limit"),
            ("offset=-1", "offset"),
            ("statuses=FINE", "statuses"),
            ("ids=1", "ids"),
            ("dry_run=perhaps", "dry_run"),
        ] {
            assert_eq!(read(query).1, [field], "{query}");
        }
    }

    #[test]
    fn a_page_of_a_list() {
        let page = Page { limit: 2, offset: 1 };
        assert_eq!(page.of(vec![1, 2, 3, 4]), [2, 3]);
        assert!(page.has_next(4) && !page.has_next(3));
    }
}
