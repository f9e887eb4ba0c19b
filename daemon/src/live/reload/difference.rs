//! What differs between two configurations, key by key. Both are written as TOML first, so no key can be forgotten.

use crate::configuration::Configuration;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// `section.key`, `teacher[<name>].key`, or `corpus[<name>]` as a whole; `teacher` for the order of those that both have.
    pub key: String,
    /// `None`: it is not set.
    pub from: Option<Value>,
    /// `None`: it is set no more.
    pub to: Option<Value>,
}

impl Difference {
    /// For people.
    pub fn describe(&self) -> String {
        match (&self.from, &self.to) {
            (None, Some(Value::Table(_))) => format!("{} added", self.key),
            (Some(Value::Table(_)), None) => format!("{} removed", self.key),
            (from, to) => format!("{} {} → {}", self.key, show(from.as_ref()), show(to.as_ref())),
        }
    }
}

/// What differs, in the order of the keys. The order of corpora is no difference: those that came while the daemon ran stand last.
///
/// # Errors
/// What the serialiser says.
pub fn between(now: &Configuration, wanted: &Configuration) -> Result<Vec<Difference>, toml::ser::Error> {
    let (now, wanted) = (Table::try_from(now)?, Table::try_from(wanted)?);
    let mut differences = Vec::new();
    let (from, to) = (names(&now, "teacher"), names(&wanted, "teacher"));
    let common = |these: &[String], others: &[String]| -> Vec<String> {
        these.iter().filter(|name| others.contains(name)).cloned().collect()
    };
    let (from, to) = (common(&from, &to), common(&to, &from));
    if from != to {
        differences.push(Difference { key: "teacher".to_owned(), from: Some(from.into()), to: Some(to.into()) });
    }
    let (from, to) = (flat(&now), flat(&wanted));
    for key in from.keys().chain(to.keys().filter(|key| !from.contains_key(*key))) {
        if from.get(key) != to.get(key) {
            let (from, to) = (from.get(key).cloned(), to.get(key).cloned());
            differences.push(Difference { key: key.clone(), from, to });
        }
    }
    differences.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(whole_tables(differences, &now, &wanted))
}

/// `base`, but these keys, none of them a corpus, as they are to become. The error says why that cannot be.
pub fn with(base: &Configuration, differences: &[&Difference]) -> Result<Configuration, String> {
    let mut table = Table::try_from(base).map_err(|error| error.to_string())?;
    for difference in differences {
        put(&mut table, difference);
    }
    let text = toml::to_string(&table).map_err(|error| error.to_string())?;
    // Paths are what they are to become.
    let parsed = Configuration::parse(&text, Path::new("")).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })?;
    // What is not written as TOML stays.
    let made = Configuration { corpus: base.corpus.clone(), file: base.file.clone(), ..parsed };
    check(&made, differences)?;
    Ok(made)
}

/// All keys of a configuration.
#[cfg(test)]
pub fn keys_of(configuration: &Configuration) -> Result<Vec<String>, toml::ser::Error> {
    Ok(flat(&Table::try_from(configuration)?).into_keys().collect())
}

/// Names of the tables of a list, in order.
fn names(table: &Table, list: &str) -> Vec<String> {
    let tables = table.get(list).and_then(Value::as_array).into_iter().flatten();
    tables.filter_map(|table| Some(table.get("name")?.as_str()?.to_owned())).collect()
}

/// By key: its value.
fn flat(configuration: &Table) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (section, value) in configuration {
        match value {
            Value::Table(keys) => {
                flat.extend(keys.iter().map(|(key, value)| (format!("{section}.{key}"), value.clone())));
            }
            Value::Array(tables) if section == "corpus" => flat.extend(tables.iter().map(|table| {
                let name = table.get("name").and_then(Value::as_str).unwrap_or_default();
                (format!("corpus[{name}]"), with_absolute_paths(table))
            })),
            Value::Array(tables) => {
                for table in tables.iter().filter_map(Value::as_table) {
                    let name = table.get("name").and_then(Value::as_str).unwrap_or_default();
                    let keys = table.iter().map(|(key, value)| (format!("{section}[{name}].{key}"), value.clone()));
                    flat.extend(keys);
                }
            }
            value => drop(flat.insert(section.clone(), value.clone())),
        }
    }
    flat
}

/// A corpus that was added while the daemon ran has absolute paths, one of the file those that stand there.
fn with_absolute_paths(table: &Value) -> Value {
    let absolute = |value: &Value| match value {
        Value::String(path) => match std::path::absolute(path) {
            Ok(path) => Value::String(path.to_string_lossy().into_owned()),
            Err(_) => value.clone(),
        },
        other => other.clone(),
    };
    let mut table = table.clone();
    for key in ["path", "watch", "follow"] {
        match table.get_mut(key) {
            Some(Value::Array(paths)) => paths.iter_mut().for_each(|path| *path = absolute(path)),
            Some(path) => *path = absolute(path),
            None => {}
        }
    }
    table
}

/// Teachers, and the student, that only one of both has are one difference each.
fn whole_tables(differences: Vec<Difference>, now: &Table, wanted: &Table) -> Vec<Difference> {
    let has = |table: &Table, name: &str| match name.strip_prefix("teacher[").and_then(|name| name.strip_suffix(']')) {
        Some(teacher) => names(table, "teacher").iter().any(|known| known == teacher),
        None => table.contains_key(name),
    };
    let mut whole: Vec<Difference> = Vec::new();
    for difference in differences {
        if difference.key.starts_with("corpus[") {
            whole.push(difference);
            continue;
        }
        let name = match difference.key.rfind("].") {
            Some(end) => &difference.key[..=end],
            None => difference.key.split_once('.').map_or(&*difference.key, |(section, _)| section),
        };
        let is_there = [now, wanted].map(|table| has(table, name));
        if name == difference.key || is_there == [true, true] {
            whole.push(difference);
        } else if !whole.iter().any(|known| known.key == name) {
            let [from, to] = is_there.map(|is_there| is_there.then(|| Value::from(name)));
            whole.push(Difference { key: name.to_owned(), from, to });
        }
    }
    whole
}

/// Each key has to be what it was to become: one that is given no more may be filled in.
fn check(made: &Configuration, differences: &[&Difference]) -> Result<(), String> {
    let made = flat(&Table::try_from(made).map_err(|error| error.to_string())?);
    match differences.iter().find(|difference| made.get(&difference.key) != difference.to.as_ref()) {
        None => Ok(()),
        Some(Difference { key, to, .. }) => {
            Err(format!("{key} would become {}, not {}", show(made.get(key)), show(to.as_ref())))
        }
    }
}

fn show(value: Option<&Value>) -> String {
    match value {
        None => "unset".to_owned(),
        Some(Value::Table(_)) => "set".to_owned(),
        Some(value) => value.to_string(),
    }
}

fn put(table: &mut Table, Difference { key, to, .. }: &Difference) {
    let Some((section, key)) = key.rsplit_once('.') else { return };
    let section = match section.strip_prefix("teacher[").and_then(|name| name.strip_suffix(']')) {
        None => table.get_mut(section).and_then(Value::as_table_mut),
        Some(name) => {
            let teachers = table.get_mut("teacher").and_then(Value::as_array_mut).into_iter().flatten();
            let mut teachers = teachers.filter_map(Value::as_table_mut);
            teachers.find(|teacher| teacher.get("name").and_then(Value::as_str) == Some(name))
        }
    };
    let Some(section) = section else { return };
    match to {
        Some(value) => drop(section.insert(key.to_owned(), value.clone())),
        None => drop(section.remove(key)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

    const BASE: &str = r#"
        [threads]
        teachers = 2
        trainer = 2
        [[teacher]]
        name = "a"
        path = "teacher"
        languages = ["en"]
        [[teacher]]
        name = "b"
        path = "teacher"
        languages = ["en"]
        [[corpus]]
        name = "c"
        language = "en"
        path = "*.txt"
        [student]
        [train]
        steps = 5
    "#;

    fn parse(text: &str) -> Configuration {
        Configuration::parse(text, Path::new("/")).unwrap()
    }

    fn differences(text: &str) -> Vec<Difference> {
        between(&parse(BASE), &parse(text)).unwrap()
    }

    fn keys(text: &str) -> Vec<String> {
        differences(text).into_iter().map(|difference| difference.key).collect()
    }

    #[test]
    fn what_differs_is_named_once() {
        assert_eq!(keys(BASE), [""; 0]);
        let more = format!("{BASE}\nlearning_rate = 0.25\n[store]\nretain_hours = 2.5\n[ops]\ntoken_file = \"x\"");
        let found = differences(&more);
        let show = |value: &Option<Value>| value.as_ref().map(ToString::to_string);
        let found: Vec<_> = found.iter().map(|found| (&*found.key, show(&found.from), show(&found.to))).collect();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [
                ("ops.token_file", None, some("\"/x\"")),
                ("store.retain_hours", some("0.0"), some("2.5")),
                ("train.learning_rate", some("0.0005"), some("0.25")),
            ]
        );
        assert_eq!(keys(&BASE.replace("[student]", "")), ["student", "threads.trainer"]);
    }

    #[test]
    fn tables_of_a_list_are_told_by_their_names() {
        let third = "[[teacher]]\nname = \"c\"\npath = \"t\"\nlanguages = [\"en\"]\n";
        assert_eq!(keys(&format!("{third}{BASE}")), ["teacher[c]"]);
        assert_eq!(keys(&BASE.replace("name = \"b\"", "name = \"d\"")), ["teacher[b]", "teacher[d]"]);
        assert_eq!(
            keys(&BASE.replace("name = \"b\"", "name = \"b\"\nstall_seconds = 3")),
            ["teacher[b].stall_seconds"]
        );
        let swapped = BASE.replace("name = \"a\"", "name = \"x\"").replace("name = \"b\"", "name = \"a\"");
        assert_eq!(keys(&swapped.replace("name = \"x\"", "name = \"b\"")), ["teacher"]);
        assert_eq!(keys(&BASE.replace("*.txt", "*.text")), ["corpus[c]"]);
        let second = "[[corpus]]\nname = \"d\"\nlanguage = \"en\"\nsource = \"http\"\n";
        assert_eq!(keys(&format!("{second}{BASE}")), ["corpus[d]"]);
        let (before, after) = (parse(&format!("{second}{BASE}")), parse(BASE));
        let both = Configuration { corpus: [&after.corpus[..], &before.corpus[..1]].concat(), ..after };
        assert_eq!(between(&before, &both).unwrap(), []);
    }

    #[test]
    fn single_keys_are_taken_over() {
        let wanted = "[store]\nretain_bytes = 1000000000\nsegment_bytes = 65536\n[quarantine]\nmax_bytes = 2000000\n";
        let wanted = wanted.to_owned() + &BASE.replace("name = \"b\"", "name = \"b\"\non_stall = \"drop-copy\"");
        let (base, wanted) = (parse(BASE), parse(&wanted));
        let differences = between(&base, &wanted).unwrap();
        let all: Vec<&Difference> = differences.iter().collect();
        let merged = with(&base, &all).unwrap();
        assert_eq!(between(&merged, &wanted).unwrap(), []);
        let only = |key: &str| all.iter().copied().filter(|difference| difference.key == key).collect::<Vec<_>>();
        let merged = with(&base, &only("teacher[b].on_stall")).unwrap();
        assert_eq!(merged.teacher[1].on_stall, "drop-copy");
        assert_eq!(between(&base, &merged).unwrap().len(), 1);
        // A value that does not go with those that stay.
        let small = parse(&format!("{BASE}\n[store]\nsegment_bytes = 65536\nretain_bytes = 100000"));
        let differences = between(&base, &small).unwrap();
        let retain: Vec<_> = differences.iter().filter(|difference| difference.key == "store.retain_bytes").collect();
        assert!(with(&base, &retain).unwrap_err().contains("less than one segment (134217728)"));
    }
}
