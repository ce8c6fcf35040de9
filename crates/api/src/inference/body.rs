//! The body of a question: which model it asks, and how an engine gets it.
//!
//! Read at its top level alone: every member keeps its bytes, and only what must change is changed. The engine judges
//! the rest; it knows what its model can do.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::error::Refusal;

/// Most members of a body: OpenAI's and Mistral's contracts have fewer than 50 together.
const MEMBERS_MAX: usize = 200;

/// What is read in before an answer is written.
const PROMPT_MEMBERS: [&str; 7] = [
    "messages",
    "prompt",
    "input",
    "tools",
    "suffix",
    "system",
    "instructions",
];
/// Ends the path of what has no answer in tokens.
const EMBEDDINGS: &str = "/embeddings";
/// Ends the path of what computes nothing.
const COUNTING: &str = "/count_tokens";
/// Bytes of JSON that make a token, about: of English text four, of JSON around it less than one token in eight.
const BYTES_OF_A_TOKEN: usize = 4;
/// Tokens that an answer is thought to have when the question does not bound it.
const ANSWER_TOKENS: u64 = 256;
/// Most tokens that one answer is thought to have, whatever the question asks for: the longest context that common models
/// were trained for. Engines end an answer with their model's.
const ANSWER_MAX: u64 = 131_072;
/// Most answers to one question; engines write no more at once.
const ANSWERS_MAX: u64 = 16;

/// A question, of which only the model is understood.
#[derive(Debug)]
pub(super) struct Asked<'b> {
    model: String,
    members: Vec<(String, &'b RawValue)>,
}

impl<'b> Asked<'b> {
    /// Reads a body.
    pub(super) fn read(bytes: &'b [u8]) -> Result<Self, Refusal> {
        let Members(members) = serde_json::from_slice(bytes).map_err(|error| {
            Refusal::bad(format!("the body is not a JSON object that can be read: {error}"))
        })?;
        let given = members.iter().find(|(name, _)| name == "model");
        let Some((_, model)) = given else {
            return Err(Refusal::bad("the body must say which model it asks: give `model`").of("model"));
        };
        let model: String = serde_json::from_str(model.get())
            .map_err(|_| Refusal::bad("`model` must be the name of a model, as text").of("model"))?;
        Ok(Self { model, members })
    }

    /// The model, as the caller names it.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Tokens that the question may cost: a guess that is settled by what it did cost. Prompts count a token for
    /// [`BYTES_OF_A_TOKEN`] bytes, answers what they may have at most, or [`ANSWER_TOKENS`] where nothing says so.
    pub(super) fn cost_estimate(&self, path: &str) -> u64 {
        if path.ends_with(COUNTING) {
            return 0;
        }
        let bytes = |name: &str| {
            let given = self.members.iter().find(|(known, _)| known == name);
            given.map_or(0, |(_, value)| value.get().len())
        };
        let number = |name: &str| {
            let given = self.members.iter().find(|(known, _)| known == name);
            given.and_then(|(_, value)| serde_json::from_str::<u64>(value.get()).ok())
        };
        let prompt: usize = PROMPT_MEMBERS.iter().map(|name| bytes(name)).sum();
        let prompt = u64::try_from(prompt.div_ceil(BYTES_OF_A_TOKEN)).unwrap_or(u64::MAX);
        let most = ["max_completion_tokens", "max_tokens", "max_output_tokens"]
            .iter()
            .find_map(|name| number(name));
        let answer = match most {
            _ if path.ends_with(EMBEDDINGS) => 0,
            Some(most) => most.min(ANSWER_MAX),
            None => ANSWER_TOKENS,
        };
        let answers = number("n").unwrap_or(1).clamp(1, ANSWERS_MAX);
        // More is not believed: what is said here is set aside, and nobody may set aside all there is.
        prompt.saturating_add(answer.saturating_mul(answers))
    }

    /// The body for an engine that serves its model under `name`. What Mistral's contract names differently is written
    /// as OpenAI's has it.
    pub(super) fn for_engine(&self, name: &str) -> Result<Bytes, Refusal> {
        let length: usize = self
            .members
            .iter()
            .map(|(name, value)| name.len() + value.get().len() + 4)
            .sum();
        let mut out = Vec::with_capacity(length + name.len());
        let mut first = true;
        let mut put = |name: &str, value: &str| {
            out.push(if first { b'{' } else { b',' });
            first = false;
            out.extend(text(name).as_bytes());
            out.push(b':');
            out.extend(value.as_bytes());
        };
        let is_given = |name: &str| self.members.iter().any(|(known, _)| known == name);
        for (member, value) in &self.members {
            let value = value.get();
            match member.as_str() {
                "model" => put("model", &text(name)),
                "random_seed" if is_given("seed") => {
                    return Err(Refusal::bad("give `seed` or `random_seed`, not both").of("random_seed"));
                }
                "random_seed" => put("seed", value),
                "tool_choice" if value == r#""any""# => put("tool_choice", r#""required""#),
                "safe_prompt" if matches!(value, "false" | "null") => {}
                "safe_prompt" => {
                    let message = "`safe_prompt` is not available here: write what is asked of the model into a \
                                   system message";
                    return Err(Refusal::bad(message).of("safe_prompt"));
                }
                other => put(other, value),
            }
        }
        out.push(b'}');
        Ok(out.into())
    }
}

/// As JSON.
fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

/// The members of an object, in their order.
struct Members<'b>(Vec<(String, &'b RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Vec<(String, &RawValue)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if members.len() >= MEMBERS_MAX {
                        return Err(A::Error::custom(format_args!("more than {MEMBERS_MAX} members")));
                    }
                    if members.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom("a member is there twice"));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn for_engine(body: &str) -> Result<String, Refusal> {
        let asked = Asked::read(body.as_bytes())?;
        let bytes = asked.for_engine("chat")?;
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn the_engine_gets_what_was_asked_under_its_own_name() {
        assert_eq!(
            for_engine(r#" {"messages": [ {"role":"user"} ], "model" : "app/chat" ,"seed":1.50} "#).unwrap(),
            r#"{"messages":[ {"role":"user"} ],"model":"chat","seed":1.50}"#
        );
    }

    #[test]
    fn what_a_question_may_cost_is_guessed_from_its_size_and_bounds() {
        let of = |path: &str, body: &str| Asked::read(body.as_bytes()).unwrap().cost_estimate(path);
        let cost = |body: &str| of("/v1/chat/completions", body);
        assert_eq!(of("/v1/embeddings", r#"{"model":"m","input":"0123456789"}"#), 3);
        assert_eq!(
            of(
                "/v1/messages/count_tokens",
                r#"{"model":"m","messages":"0123456789"}"#
            ),
            0
        );
        assert_eq!(cost(r#"{"model":"m","prompt":"0123456789","max_tokens":7}"#), 10);
        assert_eq!(
            cost(r#"{"model":"m","prompt":"0123456789","n":3,"max_tokens":7}"#),
            24
        );
        assert_eq!(cost(r#"{"model":"m","messages":[]}"#), 1 + ANSWER_TOKENS);
        assert_eq!(
            cost(r#"{"model":"m","prompt":"","max_tokens":18446744073709551615,"n":9}"#),
            1 + 9 * ANSWER_MAX
        );
        assert_eq!(
            cost(r#"{"model":"m","prompt":"","max_tokens":1000000,"n":1000000}"#),
            1 + ANSWERS_MAX * ANSWER_MAX
        );
    }

    #[test]
    fn mistrals_words_become_openais() {
        assert_eq!(
            for_engine(r#"{"model":"m","random_seed":7,"safe_prompt":false,"tool_choice":"any"}"#).unwrap(),
            r#"{"model":"chat","seed":7,"tool_choice":"required"}"#
        );
        let refused = for_engine(r#"{"model":"m","safe_prompt":true}"#).unwrap_err();
        assert_eq!(refused.parameter, Some("safe_prompt"));
        let refused = for_engine(r#"{"model":"m","seed":1,"random_seed":1}"#).unwrap_err();
        assert_eq!(refused.parameter, Some("random_seed"));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let deep = format!(r#"{{"model":"m","x":{}}}"#, "[".repeat(100_000));
        let wide: String = (0..300).map(|index| format!(r#""k{index}":1,"#)).collect();
        let wide = format!(r#"{{{wide}"model":"m"}}"#);
        for body in [
            "",
            "[]",
            "{",
            r#"{"model":"a","model":"b"}"#,
            &deep,
            &wide,
            "{\"model\":\"\u{0}\"}",
        ] {
            assert!(Asked::read(body.as_bytes()).is_err(), "{body:.80}");
        }
        assert!(Asked::read(b"{\"model\":\"\xff\"}").is_err());
        for body in ["{}", r#"{"model":null}"#, r#"{"model":["a"]}"#] {
            assert_eq!(
                Asked::read(body.as_bytes()).unwrap_err().parameter,
                Some("model"),
                "{body}"
            );
        }
    }

    proptest! {
        /// What is not translated comes out as it went in.
        #[test]
        fn other_members_are_kept(name in "[a-z\"\\\\é]{1,8}", value in "[ -~é]{0,20}") {
            prop_assume!(!["model", "random_seed", "tool_choice", "safe_prompt"].contains(&name.as_str()));
            let body = serde_json::json!({ "model": "m", (name.clone()): value }).to_string();
            let out: serde_json::Value = serde_json::from_str(&for_engine(&body).unwrap()).unwrap();
            prop_assert_eq!(&out[&name], &serde_json::Value::from(value));
            prop_assert_eq!(&out["model"], "chat");
        }
    }
}
