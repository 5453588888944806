//! Prometheus' text exposition format, version 0.0.4.

use super::{Family, Kind, Value};
use std::fmt::Write as _;

pub fn text(families: &[Family]) -> String {
    let mut out = String::new();
    for family in families {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
        let name = family.name;
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for point in &family.points {
            match &point.value {
                Value::Number(value) => {
                    let _ = writeln!(out, "{name}{} {value}", labels(&point.labels, None));
                }
                Value::Buckets { bounds, counts, sum } => {
                    let mut below = 0;
                    let bounds = bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
                    for (bound, count) in bounds.zip(counts) {
                        below += count;
                        let _ = writeln!(out, "{name}_bucket{} {below}", labels(&point.labels, Some(&bound)));
                    }
                    let plain = labels(&point.labels, None);
                    let _ = writeln!(out, "{name}_sum{plain} {sum}\n{name}_count{plain} {below}");
                }
            }
        }
    }
    out
}

fn labels(labels: &[(&'static str, String)], bound: Option<&str>) -> String {
    let bound = bound.map(|bound| ("le", bound.to_owned()));
    let pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| (*name, value.clone()))
        .chain(bound)
        .map(|(name, value)| format!("{name}=\"{}\"", escape(&value)))
        .collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use std::collections::{BTreeMap, BTreeSet};

    /// What `promtool check metrics` holds against a text, as far as its own documents say: each family with one HELP and
    /// one TYPE before its samples and in one piece, names and labels of the allowed letters, no sample twice, counters
    /// that end in `_total`, histograms whose buckets grow up to `+Inf` and agree with their count.
    pub fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let (mut families, mut current, mut seen) = (BTreeMap::new(), None::<(String, String)>, BTreeSet::new());
        let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        let (mut helped, mut counts) = (BTreeSet::new(), BTreeMap::new());
        if !text.ends_with('\n') {
            faults.push("the last line has no end".to_owned());
        }
        for (number, line) in text.lines().enumerate() {
            let mut fault = |what: &str| faults.push(format!("line {}: {what}: {line}", number + 1));
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
                if !helped.insert(name.to_owned()) || help.is_empty() {
                    fault("a help that stands twice or is empty");
                }
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
                if !matches!(kind, "counter" | "gauge" | "histogram") || !helped.contains(name) {
                    fault("a type that is none, or without a help");
                }
                if families.insert(name.to_owned(), kind.to_owned()).is_some() {
                    fault("a family that stands twice");
                }
                if (kind == "counter") != name.ends_with("_total") {
                    fault("counters, and nothing else, end in _total");
                }
                current = Some((name.to_owned(), kind.to_owned()));
                continue;
            }
            let Some((sample, value)) = line.rsplit_once(' ') else {
                fault("no sample");
                continue;
            };
            let value = value.parse::<f64>().unwrap_or(f64::NAN);
            if !value.is_finite() {
                fault("no number");
            }
            let (name, labels) = match sample.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or("?")),
                None => (sample, ""),
            };
            let letters = |text: &str| {
                !text.is_empty()
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                    && !text.starts_with(|first: char| first.is_ascii_digit())
            };
            let pairs: Vec<(&str, &str)> =
                labels.split("\",").filter(|pair| !pair.is_empty()).filter_map(|pair| pair.split_once("=\"")).collect();
            let wanted = if labels.is_empty() { 0 } else { labels.matches("=\"").count() };
            if !letters(name) || pairs.len() != wanted || !pairs.iter().all(|(name, _)| letters(name)) {
                fault("a name or label of other letters");
            }
            let names: BTreeSet<&str> = pairs.iter().map(|(name, _)| *name).collect();
            if names.len() != pairs.len() || !seen.insert(sample.to_owned()) {
                fault("a label or sample that stands twice");
            }
            let Some((family, kind)) = &current else {
                fault("a sample before its type");
                continue;
            };
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            let suffix = suffixes.iter().find(|suffix| name == format!("{family}{suffix}"));
            if suffix.is_none() {
                fault("a sample of another family");
            }
            if value < 0.0 && kind != "gauge" {
                fault("a count below zero");
            }
            let rest: Vec<String> =
                pairs.iter().filter(|(name, _)| *name != "le").map(|(name, value)| format!("{name}={value}")).collect();
            let key = format!("{family} {}", rest.join(","));
            match suffix {
                Some(&"_bucket") => {
                    let bound = pairs.iter().find(|(name, _)| *name == "le").map_or("", |(_, bound)| bound);
                    let bound = bound.trim_end_matches('"');
                    let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap_or(f64::NAN) };
                    buckets.entry(key).or_default().push((bound, value));
                }
                Some(&"_count") => {
                    counts.insert(key, value);
                }
                _ => {}
            }
        }
        for (key, buckets) in &buckets {
            let grows = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            let last = buckets.last().copied().unwrap_or_default();
            if !grows || last.0 != f64::INFINITY || counts.get(key) != Some(&last.1) {
                faults.push(format!("{key}: buckets that are no histogram: {buckets:?}"));
            }
        }
        faults
    }

    #[test]
    fn the_checker_of_the_text_form_sees_what_is_wrong() {
        let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{app=\"x\"} 1\n\
                    # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";
        assert_eq!(faults(good), [""; 0]);
        for (from, to) in [
            ("a_total{app=\"x\"} 1\n", "a_total{app=\"x\"} 1\na_total{app=\"x\"} 2\n"),
            ("a_total{app=\"x\"} 1\n", "a_total{1app=\"x\"} 1\n"),
            ("a_total{app=\"x\"} 1\n", "a_total{app=\"x\"} NaN\n"),
            ("a_total{app=\"x\"} 1\n", "b_total{app=\"x\"} 1\n"),
            ("a_total{app=\"x\"} 1\n", "a_total{app=\"x\"} -1\n"),
            ("counter", "counters"),
            ("# HELP a_total A.\n", ""),
            ("h_bucket{le=\"+Inf\"} 2\n", ""),
            ("h_count 2", "h_count 3"),
            ("h_bucket{le=\"1\"} 1", "h_bucket{le=\"1\"} 5"),
            ("a_total ", "a "),
        ] {
            let broken = good.replace(from, to);
            assert_ne!(broken, good);
            assert!(!faults(&broken).is_empty(), "{to}");
        }
    }

    #[test]
    fn what_stands_in_labels_cannot_leave_them() {
        let mut family = Family::new("a_total", Kind::Counter, "A\nb.", Timestamp(0));
        family.add(vec![("app", "x\"} 1\na_total{app=\"y".to_owned())], 2.0);
        let text = text(&[family]);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains(r#"a_total{app="x\"} 1\na_total{app=\"y"} 2"#), "{text}");
    }
}
