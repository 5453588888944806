//! How many of which process type an app runs, when somebody says so. Scaling makes no release: it changes what the
//! live one should run.

use crate::domain::*;
use std::collections::BTreeMap;

/// What somebody wants of one process type; what is not said stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScaleOrder {
    pub quantity: Option<u16>,
    pub size: Option<String>,
}

/// What the operator allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleLimits {
    /// Known dyno sizes.
    pub sizes: Vec<String>,
    /// All types of one app together.
    pub most: u16,
    /// All apps together.
    pub most_in_all: u32,
    /// What the other apps are scaled to.
    pub elsewhere: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScaleRefusal {
    #[error("nothing was named: write a process type and a quantity, such as web=2 or web=2:standard-2x")]
    Nothing,
    #[error("{text:?} is not TYPE=QUANTITY, TYPE=QUANTITY:SIZE or TYPE=SIZE")]
    NotUnderstood { text: String },
    #[error("{app} has no release yet, so there is nothing to scale")]
    NoRelease { app: AppName },
    #[error("{kind} is not a process type of {app}; it has {}", known.join(", "))]
    NoSuchType { app: AppName, kind: String, known: Vec<String> },
    #[error("there is no size {size}; there are {}", known.join(", "))]
    UnknownSize { size: String, known: Vec<String> },
    #[error("{app} would have {wanted} processes, and an app may have {most} (apps.max_processes_per_app)")]
    TooMany { app: AppName, wanted: u32, most: u16 },
    #[error("all apps together would have {wanted} processes, and {most} are allowed (apps.max_processes)")]
    TooManyInAll { wanted: u32, most: u32 },
}

/// Reads `web=3`, `web=3:standard-2x` and `web=standard-2x`.
pub fn parse_scale(text: &str) -> Result<(String, ScaleOrder), ScaleRefusal> {
    let refusal = || ScaleRefusal::NotUnderstood { text: text.chars().take(100).collect() };
    let (kind, wish) = text.split_once('=').ok_or_else(refusal)?;
    if !is_process_type(kind) {
        return Err(refusal());
    }
    let (quantity, size) = match wish.split_once(':') {
        Some((quantity, size)) => (Some(quantity), Some(size)),
        None if wish.starts_with(|first: char| first.is_ascii_digit()) => (Some(wish), None),
        None => (None, Some(wish)),
    };
    let quantity = match quantity {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| refusal())?)
        }
        Some(_) => return Err(refusal()),
        None => None,
    };
    let size = size.map(str::to_ascii_lowercase);
    let odd = |size: &String| {
        !size.starts_with(|first: char| first.is_ascii_alphabetic())
            || !size.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if size.as_ref().is_some_and(odd) {
        return Err(refusal());
    }
    Ok((kind.to_owned(), ScaleOrder { quantity, size }))
}

/// The app's formation as it is to be; `release` is the live one.
pub fn scaled(
    app: &App,
    release: Option<&Release>,
    orders: &BTreeMap<String, ScaleOrder>,
    limits: &ScaleLimits,
) -> Result<BTreeMap<String, Scale>, ScaleRefusal> {
    if orders.is_empty() {
        return Err(ScaleRefusal::Nothing);
    }
    let release = release.ok_or_else(|| ScaleRefusal::NoRelease { app: app.name.clone() })?;
    let mut formation = app.formation.clone().unwrap_or_else(|| release.formation.clone());
    for (kind, scale) in app.formation_of(release) {
        formation.entry(kind).or_insert(scale);
    }
    let known: Vec<String> = release.process_types.keys().filter(|kind| is_scalable(kind)).cloned().collect();
    for (kind, order) in orders {
        if !known.contains(kind) {
            return Err(ScaleRefusal::NoSuchType { app: app.name.clone(), kind: kind.clone(), known });
        }
        if let Some(size) = order.size.as_ref().filter(|size| !limits.sizes.contains(size)) {
            return Err(ScaleRefusal::UnknownSize { size: size.clone(), known: limits.sizes.clone() });
        }
        let entry = formation.entry(kind.clone()).or_insert(Scale { quantity: 0, size: DEFAULT_SIZE.to_owned() });
        entry.quantity = order.quantity.unwrap_or(entry.quantity);
        if let Some(size) = &order.size {
            entry.size.clone_from(size);
        }
    }
    let count = |formation: &BTreeMap<String, Scale>| -> u32 {
        formation.iter().filter(|(kind, _)| known.contains(kind)).map(|(_, scale)| u32::from(scale.quantity)).sum()
    };
    let (wanted, now) = (count(&formation), count(&app.formation_of(release)));
    // Less is always allowed, whatever the limits have become since.
    if wanted > now && wanted > u32::from(limits.most) {
        return Err(ScaleRefusal::TooMany { app: app.name.clone(), wanted, most: limits.most });
    }
    if wanted > now && wanted + limits.elsewhere > limits.most_in_all {
        return Err(ScaleRefusal::TooManyInAll { wanted: wanted + limits.elsewhere, most: limits.most_in_all });
    }
    Ok(formation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_is_read_as_people_write_it() {
        let order = |quantity, size: Option<&str>| ScaleOrder { quantity, size: size.map(str::to_owned) };
        for (text, expected) in [
            ("web=3", ("web", order(Some(3), None))),
            ("web=0", ("web", order(Some(0), None))),
            ("worker=2:Standard-2X", ("worker", order(Some(2), Some("standard-2x")))),
            ("web=performance-m", ("web", order(None, Some("performance-m")))),
        ] {
            assert_eq!(parse_scale(text), Ok((expected.0.to_owned(), expected.1)), "{text}");
        }
        for text in ["web", "=3", "web=", "web=-1", "web=3:", "web=70000", "web=3x", "web=1:a b", "a b=1", "web=1:2:3"]
        {
            assert!(matches!(parse_scale(text), Err(ScaleRefusal::NotUnderstood { .. })), "{text}");
        }
    }
}
