//! How web processes are checked, warmed up and put to sleep: `[web]`.

use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebSettings {}
