//! Where the pipeline's rules stand: in the file on the default branch, and on the dashboard. What the file says wins, key
//! by key; what it leaves open the dashboard may say.

use super::{PipelineSettings, RepositorySettings, SettingsError};
use serde::Serialize;
use serde_json::{Map, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleSource {
    File,
    Dashboard,
}

/// One key that somebody set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleLine {
    /// `pipeline.production.right`
    pub key: String,
    /// As JSON.
    pub value: String,
    pub source: RuleSource,
    /// What the dashboard says instead, which does not hold.
    pub overruled: Option<String>,
}

/// The rules that hold, and where each that is set comes from. Either text is a `.github/landfall.toml`; of the
/// dashboard's only `[pipeline]` may be there.
///
/// # Errors
/// As of the file's parser, or what is wrong with the two together.
pub fn merged(dashboard: &str, file: &str) -> Result<(PipelineSettings, Vec<RuleLine>), SettingsError> {
    let of_dashboard = table(dashboard)?;
    if let Some(other) = of_dashboard.keys().find(|key| *key != "pipeline") {
        return Err(SettingsError::Malformed(format!(
            "[{other}] belongs to the code: set it in the repository's file"
        )));
    }
    RepositorySettings::parse(dashboard.as_bytes())?;
    let of_file = table(file)?;
    let empty = || Value::Object(Map::new());
    let of = |table: &Map<String, Value>| table.get("pipeline").cloned().unwrap_or_else(empty);
    let (low, high) = (of(&of_dashboard), of(&of_file));
    let mut lines = Vec::new();
    let both = merge("pipeline", &low, &high, &mut lines);
    let settings: PipelineSettings =
        serde_json::from_value(both).map_err(|error| SettingsError::Malformed(error.to_string()))?;
    settings.check().map_err(SettingsError::Malformed)?;
    Ok((settings, lines))
}

fn table(text: &str) -> Result<Map<String, Value>, SettingsError> {
    toml::from_str(text).map_err(|error| SettingsError::Malformed(error.to_string().trim_end().to_owned()))
}

/// Tables are taken together key by key; everything else is one thing, and the file's is the one that counts.
fn merge(key: &str, low: &Value, high: &Value, lines: &mut Vec<RuleLine>) -> Value {
    let (Value::Object(low), Value::Object(high)) = (low, high) else {
        lines.push(line(key, high, RuleSource::File, Some(low)));
        return high.clone();
    };
    let mut both = Map::new();
    let mut names: Vec<&String> = low.keys().chain(high.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let below = format!("{key}.{name}");
        let value = match (low.get(name), high.get(name)) {
            (Some(low), Some(high)) => merge(&below, low, high, lines),
            (None, Some(value)) => leaves(&below, value, RuleSource::File, lines),
            (Some(value), None) => leaves(&below, value, RuleSource::Dashboard, lines),
            (None, None) => continue,
        };
        both.insert(name.clone(), value);
    }
    Value::Object(both)
}

fn leaves(key: &str, value: &Value, source: RuleSource, lines: &mut Vec<RuleLine>) -> Value {
    match value {
        Value::Object(table) if !table.is_empty() => {
            for (name, value) in table {
                leaves(&format!("{key}.{name}"), value, source, lines);
            }
        }
        _ => lines.push(line(key, value, source, None)),
    }
    value.clone()
}

fn line(key: &str, value: &Value, source: RuleSource, overruled: Option<&Value>) -> RuleLine {
    let overruled = overruled.filter(|other| *other != value).map(Value::to_string);
    RuleLine { key: key.to_owned(), value: value.to_string(), source, overruled }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Access, ReviewApps};

    #[test]
    fn the_file_wins_key_by_key_and_the_dashboard_says_the_rest() {
        let dashboard = "[pipeline.review]\napps = \"manual\"\nlimit = 3\n[pipeline.production]\nright = \"write\"\n";
        let file =
            "[tests]\nnodes = 2\n[pipeline.production]\nright = \"admin\"\n[pipeline.apps.api]\nroot = \"api\"\n";
        let (settings, lines) = merged(dashboard, file).unwrap();
        assert_eq!((settings.review.apps, settings.review.limit), (ReviewApps::Manual, Some(3)));
        assert_eq!((settings.production.right, settings.folders().len()), (Access::Admin, 1));
        let said: Vec<String> = lines
            .iter()
            .map(|line| format!("{} {} {:?} {:?}", line.key, line.value, line.source, line.overruled))
            .collect();
        assert_eq!(
            said,
            [
                "pipeline.apps.api.root \"api\" File None",
                "pipeline.production.right \"admin\" File Some(\"\\\"write\\\"\")",
                "pipeline.review.apps \"manual\" Dashboard None",
                "pipeline.review.limit 3 Dashboard None",
            ]
        );
        assert_eq!(merged("", "").unwrap(), (PipelineSettings::default(), Vec::new()));
        for (dashboard, expected) in [
            ("[tests]\nnodes = 2\n", "belongs to the code"),
            ("[pipeline.reveiw]\n", "reveiw"),
            ("[pipeline", "line 1"),
        ] {
            let error = merged(dashboard, file).unwrap_err().to_string();
            assert!(error.contains(expected), "{dashboard}: {error}");
        }
    }
}
