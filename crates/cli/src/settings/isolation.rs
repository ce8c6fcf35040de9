//! Which class of isolation the instances of an instance type have.

use std::collections::BTreeMap;

use tram_types::{Isolation, catalog::INSTANCE_TYPES};

use super::value::{Setting, parts, quoted};

/// Classes by the id of an instance type; what is not there is a `container`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Isolations(pub BTreeMap<String, Isolation>);

impl Isolations {
    fn add(&mut self, id: &str, class: &str) -> Result<(), String> {
        let id = id.trim();
        if !INSTANCE_TYPES.iter().any(|kind| kind.id == id) {
            let known: Vec<&str> = INSTANCE_TYPES.iter().map(|kind| kind.id.as_ref()).collect();
            return Err(format!(
                "`{id}` is no instance type: use one of {}",
                known.join(", ")
            ));
        }
        let class = class.trim().parse().map_err(|error| format!("{id}: {error}"))?;
        match self.0.insert(id.to_owned(), class) {
            Some(_) => Err(format!("`{id}` is there twice")),
            None => Ok(()),
        }
    }

    /// Whether any instance type is of this class.
    #[must_use]
    pub fn uses(&self, class: Isolation) -> bool {
        self.0.values().any(|used| *used == class)
    }
}

impl Setting for Isolations {
    const KIND: &'static str = "TYPE=CLASS,…";

    fn parse(text: &str) -> Result<Self, String> {
        let mut isolations = Self::default();
        for part in parts(text) {
            let (id, class) = part.split_once('=').ok_or_else(|| {
                format!("`{part}` is not an instance type and its class, such as small=gvisor")
            })?;
            isolations.add(id, class)?;
        }
        Ok(isolations)
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        let toml::Value::Table(table) = value else {
            let text = value
                .as_str()
                .ok_or("must be a table of instance types and classes")?;
            return Self::parse(text);
        };
        let mut isolations = Self::default();
        for (id, class) in table {
            let class = class
                .as_str()
                .ok_or_else(|| format!("the class of `{id}` must be a string"))?;
            isolations.add(id, class)?;
        }
        Ok(isolations)
    }

    fn show(&self) -> String {
        let texts = self.0.iter().map(|(id, class)| format!("{id}={class}"));
        quoted(&texts.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_given_by_instance_type() {
        let expected = Isolations(BTreeMap::from([
            ("micro".to_owned(), Isolation::Container),
            ("small".to_owned(), Isolation::Gvisor),
        ]));
        assert_eq!(
            Isolations::parse("small=gvisor, micro=container"),
            Ok(expected.clone())
        );
        let table = toml::Value::Table(toml::from_str("small = 'gvisor'\nmicro = 'container'").unwrap());
        assert_eq!(Isolations::of_toml(&table), Ok(expected.clone()));
        assert_eq!(expected.show(), "\"micro=container,small=gvisor\"");
        assert!(expected.uses(Isolation::Gvisor) && !Isolations::default().uses(Isolation::Gvisor));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("small", "`small` is not an instance type and its class"),
            ("tiny=gvisor", "`tiny` is no instance type: use one of free,"),
            (
                "small=vm",
                "small: `vm` is no isolation class: use one of container, gvisor",
            ),
            ("small=gvisor,small=container", "`small` is there twice"),
        ] {
            let error = Isolations::parse(text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
