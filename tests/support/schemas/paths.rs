//! Which operation a request means: from a path to the template that GitHub's description has for it.
//!
//! A few parameters (a ref, a file's path) take slashes, so a path may fit several templates; the one with the most
//! literal parts wins, as `/commits/{ref}/status` does over `/commits/{ref}`.

use super::Operation;

/// Parameters that may span several parts of a path.
const WITH_SLASHES: [&str; 5] = ["path", "ref", "branch", "basehead", "tree_sha"];

/// The names and decoded values of a path's parameters.
pub type Values<'a> = Vec<(&'a str, String)>;

/// Finds the operation and the decoded values of its path parameters. Errs with a reason that continues a sentence.
pub fn find<'a>(operations: &'a [Operation], method: &str, path: &str) -> Result<(&'a Operation, Values<'a>), String> {
    let Some(inner) = path.strip_prefix('/') else {
        return Err("the path must start with a slash".to_owned());
    };
    let mut parts: Vec<&str> = inner.split('/').collect();
    // GitHub's links and redirects name repositories by id; whatever works under /repos works there.
    if parts[0] == "repositories" && parts.len() > 1 {
        if parts[1].parse::<u64>().is_err() {
            return Err(format!("the repository's id must be a number, not `{}`", parts[1]));
        }
        parts.splice(0..2, ["repos", "by-id", parts[1]]);
    }

    let fitting = operations.iter().filter_map(|operation| {
        let template: Vec<&str> = operation.template[1..].split('/').collect();
        let values = fit(&template, &parts)?;
        Some((template.len() - values.len(), operation, values))
    });
    let mut fitting: Vec<_> = fitting.collect();
    let most = fitting.iter().map(|(literal, ..)| *literal).max().unwrap_or_default();
    fitting.retain(|(literal, ..)| *literal == most);
    if let Some(at) = fitting.iter().position(|(_, operation, _)| operation.method == method) {
        let (_, operation, values) = fitting.swap_remove(at);
        let decoded = values.into_iter().map(|(name, value)| (name, decode(&value)));
        return Ok((operation, decoded.collect()));
    }
    if fitting.is_empty() {
        return Err("this is not among the operations that Landfall uses (see script/update-github-schemas)".to_owned());
    }
    let known: Vec<_> = fitting.iter().map(|(_, operation, _)| operation.method.as_str()).collect();
    Err(format!("of this path only {} is in use", known.join(" and ")))
}

/// The values of the template's parameters if it fits all parts. Those with slashes take as few parts as possible.
fn fit<'a>(template: &[&'a str], parts: &[&str]) -> Option<Values<'a>> {
    let Some((first, rest)) = template.split_first() else {
        return parts.is_empty().then(Vec::new);
    };
    let Some(name) = first.strip_prefix('{').and_then(|name| name.strip_suffix('}')) else {
        return fit(rest, parts.strip_prefix(&[*first])?);
    };
    let most = if WITH_SLASHES.contains(&name) { parts.len() } else { parts.len().min(1) };
    (1..=most).find_map(|count| {
        let (taken, left) = parts.split_at(count);
        // An empty value means `//` or a slash at the end; only contents has one, for the root of the tree.
        if taken.iter().all(|part| part.is_empty()) && name != "path" {
            return None;
        }
        let mut values = fit(rest, left)?;
        values.insert(0, (name, taken.join("/")));
        Some(values)
    })
}

/// The decoded names and values of a query.
pub fn query_pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
        })
        .collect()
}

/// Percent-decodes; what is no escape stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
