//! Judging one JSON value by one schema, with complaints that a person can act on.
//!
//! A failed `anyOf` says nothing by itself, so the complaints of the branch that came closest are given instead.

use std::collections::BTreeSet;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, ValidationError, Validator};
use serde_json::{Map, Value};

/// Compiles a schema with the shared definitions that it reaches.
pub fn compile(schema: &Value, definitions: &Map<String, Value>) -> Validator {
    let mut reached = Map::new();
    let mut queue = BTreeSet::new();
    references(schema, &mut queue);
    while let Some(name) = queue.pop_first() {
        if !reached.contains_key(&name) {
            let definition = &definitions[&name];
            references(definition, &mut queue);
            reached.insert(name, definition.clone());
        }
    }
    let mut document = schema.as_object().expect("a described schema is an object").clone();
    document.insert("$defs".to_owned(), reached.into());
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .with_format("uri", is_address)
        .build(&document.into())
        .expect("GitHub's schemas compile")
}

/// Complaints about a value, each naming where in it.
pub fn errors(validator: &Validator, value: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    for error in validator.iter_errors(value) {
        explain(&error, &mut complaints);
    }
    complaints.sort();
    complaints.dedup();
    complaints
}

/// Complaints about properties that the schema does not know, wherever it lists the ones it knows.
pub fn unknown_properties(schema: &Value, definitions: &Map<String, Value>, value: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    unknown_below(vec![schema], definitions, value, "", &mut complaints);
    complaints
}

fn unknown_below(
    schemas: Vec<&Value>,
    definitions: &Map<String, Value>,
    value: &Value,
    place: &str,
    complaints: &mut Vec<String>,
) {
    let mut parts = Vec::new();
    for schema in schemas {
        flatten(schema, definitions, &mut parts);
    }
    match value {
        Value::Object(members) => {
            let listed: Vec<_> = parts.iter().filter_map(|part| part.get("properties")?.as_object()).collect();
            // A schema for further properties (`{"type": "string"}`) makes the object a map with free keys.
            let is_map = parts.iter().any(|part| part.get("additionalProperties").is_some_and(Value::is_object));
            if listed.iter().all(|properties| properties.is_empty()) {
                return;
            }
            for (name, member) in members {
                let known: Vec<_> = listed.iter().filter_map(|properties| properties.get(name)).collect();
                if known.is_empty() && !is_map {
                    complaints.push(format!("GitHub knows no property `{place}/{name}`"));
                }
                unknown_below(known, definitions, member, &format!("{place}/{name}"), complaints);
            }
        }
        Value::Array(elements) => {
            let items: Vec<_> = parts.iter().filter_map(|part| part.get("items")).collect();
            for (index, element) in elements.iter().enumerate() {
                unknown_below(items.clone(), definitions, element, &format!("{place}/{index}"), complaints);
            }
        }
        _ => {}
    }
}

/// The schema and all that it is composed of, without references.
fn flatten<'a>(schema: &'a Value, definitions: &'a Map<String, Value>, parts: &mut Vec<&'a Value>) {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        return flatten(&definitions[name.trim_start_matches("#/$defs/")], definitions, parts);
    }
    parts.push(schema);
    for keyword in ["allOf", "anyOf", "oneOf"] {
        for branch in schema.get(keyword).and_then(Value::as_array).into_iter().flatten() {
            flatten(branch, definitions, parts);
        }
    }
}

fn references(node: &Value, found: &mut BTreeSet<String>) {
    match node {
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get("$ref") {
                found.insert(target.trim_start_matches("#/$defs/").to_owned());
            }
            members.values().for_each(|member| references(member, found));
        }
        Value::Array(elements) => elements.iter().for_each(|element| references(element, found)),
        _ => {}
    }
}

fn explain(error: &ValidationError<'_>, complaints: &mut Vec<String>) {
    match error.kind() {
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            let place = error.instance_path().as_str();
            // A branch that already fails on the value's own type (the null of a nullable object) came least close.
            let closest = context.iter().min_by_key(|branch| {
                let wrong_type = branch.iter().any(|inner| {
                    matches!(inner.kind(), ValidationErrorKind::Type { .. }) && inner.instance_path().as_str() == place
                });
                (wrong_type, branch.len())
            });
            for inner in closest.into_iter().flatten() {
                explain(inner, complaints);
            }
        }
        _ => {
            let place = match error.instance_path().as_str() {
                "" => "the body",
                place => place,
            };
            complaints.push(format!("{place}: {}", error.masked_with(shortened(error.instance()))));
        }
    }
}

/// A value as JSON of at most 80 characters, for a sentence.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// GitHub calls many URI templates (`…/commits{/sha}`) plain URIs and sends empty ones, so only the start is looked at.
fn is_address(text: &str) -> bool {
    let starts = ["https://", "http://", "git://", "ssh://", "git@", "mailto:"];
    text.is_empty() || (starts.iter().any(|start| text.starts_with(start)) && !text.contains(char::is_whitespace))
}
