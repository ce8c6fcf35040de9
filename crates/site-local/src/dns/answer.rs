//! What to do with one question: answer it here, or forward it.
//!
//! Pure but for the look-up. Names of the private network (digest, section 6.6) are `service`, `service.app`,
//! `service.app.internal` and `service.app.koyeb`. The last two are ours alone; the first two are answered when
//! the organization has such a service, because `example.org` looks like `service.app` too.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::directory::{Directory, Found};

/// Short: an instance that ended must not be found for long.
const TTL_SECS: u32 = 5;
/// Fits the 512 bytes that every resolver takes, with the longest name.
const ADDRESSES_MAX: usize = 12;
/// Domains of the private network.
const PRIVATE_DOMAINS: [&str; 2] = ["internal", "koyeb"];

/// What to do with a question.
#[derive(Debug)]
pub(super) enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// Ask outside.
    Forward,
}

/// `None` for what is not a question: it gets no answer, so that two servers never talk in circles.
pub(super) fn judge(question: &[u8], directory: &Directory, asker: Ipv4Addr) -> Option<Verdict> {
    let message = Message::from_vec(question).ok()?;
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let [query] = message.queries.as_slice() else {
        return respond(&message, ResponseCode::FormErr, &[]).map(Verdict::Answer);
    };
    if message.metadata.op_code != OpCode::Query {
        return respond(&message, ResponseCode::NotImp, &[]).map(Verdict::Answer);
    }
    if query.query_class() != DNSClass::IN {
        return Some(Verdict::Forward);
    }
    let labels: Vec<String> = query
        .name()
        .iter()
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let (found, ours_alone) = match labels.as_slice() {
        ["localhost"] | [_, "localhost"] => (Found::Service(vec![Ipv4Addr::LOCALHOST]), true),
        // Not forwarded: what services are called is nobody's business outside.
        [service] => (
            directory.find(asker, service, None),
            asks_for_addresses(query.query_type()),
        ),
        [service, app] if !PRIVATE_DOMAINS.contains(app) => {
            (directory.find(asker, service, Some(app)), false)
        }
        [service, app, domain] if PRIVATE_DOMAINS.contains(domain) => {
            (directory.find(asker, service, Some(app)), true)
        }
        [.., domain] if PRIVATE_DOMAINS.contains(domain) => (Found::Nothing, true),
        _ => (Found::Nothing, false),
    };
    let answer = match found {
        Found::Nothing if !ours_alone => return Some(Verdict::Forward),
        Found::Nothing => respond(&message, ResponseCode::NXDomain, &[]),
        // The name exists, but leads nowhere now: a resolver may stop searching, and asks again soon.
        Found::Service(addresses) if addresses.is_empty() => respond(&message, ResponseCode::NXDomain, &[]),
        Found::Service(addresses) if asks_for_ipv4(query.query_type()) => respond(
            &message,
            ResponseCode::NoError,
            &records(query.name(), &addresses, message.metadata.id),
        ),
        // Other types of a name that exists: no error and no record, or resolvers would give the name up.
        Found::Service(_) => respond(&message, ResponseCode::NoError, &[]),
    };
    answer.map(Verdict::Answer)
}

fn asks_for_ipv4(kind: RecordType) -> bool {
    matches!(kind, RecordType::A | RecordType::ANY)
}

fn asks_for_addresses(kind: RecordType) -> bool {
    asks_for_ipv4(kind) || kind == RecordType::AAAA
}

/// The addresses, beginning with another one each time: many programs only try the first. The question's id is
/// the asker's random number, which is all the randomness this needs.
fn records(name: &Name, addresses: &[Ipv4Addr], id: u16) -> Vec<Record> {
    let first = usize::from(id) % addresses.len().max(1);
    let rotated = addresses
        .iter()
        .cycle()
        .skip(first)
        .take(addresses.len().min(ADDRESSES_MAX));
    rotated
        .map(|address| Record::from_rdata(name.clone(), TTL_SECS, RData::A(A(*address))))
        .collect()
}

fn respond(question: &Message, code: ResponseCode, answers: &[Record]) -> Option<Vec<u8>> {
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.recursion_desired = question.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
    response.metadata.response_code = code;
    response.queries.clone_from(&question.queries);
    response.answers.extend_from_slice(answers);
    response.to_vec().ok()
}

/// The answer for a host that secrets of the asker are bound to: the guard's address, and no other record, so that no
/// program goes another way.
pub(super) fn guarded(question: &[u8], guard: Ipv4Addr) -> Option<Vec<u8>> {
    let message = Message::from_vec(question).ok()?;
    let query = message.queries.first()?;
    let found = if asks_for_ipv4(query.query_type()) {
        records(query.name(), &[guard], message.metadata.id)
    } else {
        Vec::new()
    };
    respond(&message, ResponseCode::NoError, &found)
}

/// What is said when nobody outside answers.
pub(super) fn server_failure(question: &[u8]) -> Option<Vec<u8>> {
    failure(question, ResponseCode::ServFail)
}

/// What is said about a name that a network policy does not list: not that it does not exist, which may be wrong and
/// would be remembered.
pub(super) fn refusal(question: &[u8]) -> Option<Vec<u8>> {
    failure(question, ResponseCode::Refused)
}

fn failure(question: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.recursion_desired = question.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.queries = question.queries;
    response.to_vec().ok()
}
