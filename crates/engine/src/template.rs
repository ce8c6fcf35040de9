//! The model's chat template: from messages to a prompt.
//!
//! Templates are Jinja programs that come with the model, so they are strangers' programs: they run with bounded fuel
//! and have nothing to call but what is below. What Python's Jinja offers beside the language (methods of strings and
//! lists) comes from `minijinja-contrib`.

use minijinja::{Environment, Error, ErrorKind, Value, context};

/// Steps of a template's program: a conversation of thousands of messages takes some hundred thousand; a loop without an
/// end ends here, after about a second.
const FUEL: u64 = 10_000_000;
/// The longest prompt a template may make: ten times the longest request, so only one that multiplies meets it.
const PROMPT_BYTES_MAX: usize = 10 * crate::http::BODY_BYTES_MAX;
const NAME: &str = "chat";

/// A template that was parsed.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    /// The template itself knows what to do with tools.
    pub(crate) knows_tools: bool,
}

impl Template {
    pub(crate) fn new(text: String, bos: Option<String>, eos: Option<String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        // As Hugging Face's library renders them.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_function("strftime_now", |format: String| {
            jiff::Zoned::now().strftime(&format).to_string()
        });
        let knows_tools = text.contains("tools");
        environment.add_template_owned(NAME, text)?;
        Ok(Self {
            environment,
            bos,
            eos,
            knows_tools,
        })
    }

    /// The prompt for these messages, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// When the template refuses them (an order of roles it does not know), or fails.
    pub(crate) fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
    ) -> Result<String, Error> {
        let template = self.environment.get_template(NAME)?;
        let prompt = template.render(context! {
            messages => messages,
            tools => tools,
            add_generation_prompt => true,
            bos_token => self.bos,
            eos_token => self.eos,
        })?;
        if prompt.len() > PROMPT_BYTES_MAX {
            let text = "the chat template made too long a prompt of the messages";
            return Err(Error::new(ErrorKind::InvalidOperation, text));
        }
        Ok(prompt)
    }

    /// Whether the prompt begins with the token that the vocabulary would put before it anyway.
    pub(crate) fn begins(&self, prompt: &str) -> bool {
        self.bos
            .as_deref()
            .is_some_and(|bos| !bos.is_empty() && prompt.starts_with(bos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn python_manners_and_refusals() {
        let text = "{%- for m in messages %}\n{%- if m.role == 'system' and not loop.first %}\
            {{ raise_exception('system comes first') }}{% endif %}\n\
            {{- m.role.upper() + ': ' + m['content'].strip() + eos_token }}\n{%- endfor %}";
        let template = Template::new(text.into(), None, Some("</s>".into())).unwrap();
        let user = json!({"role": "user", "content": " hi "});
        assert_eq!(
            template.render(std::slice::from_ref(&user), None).unwrap(),
            "USER: hi</s>"
        );
        let system = json!({"role": "system", "content": "x"});
        let error = template.render(&[user, system], None).unwrap_err();
        assert!(error.to_string().contains("system comes first"), "{error}");
    }

    #[test]
    fn a_loop_without_an_end_ends() {
        let text = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
        let template = Template::new(text.into(), None, None).unwrap();
        assert!(template.render(&[], None).is_err());
    }
}
