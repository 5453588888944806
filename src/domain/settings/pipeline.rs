//! Stages and the rules about them: `[pipeline]`, from the default branch only.

use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PipelineSettings {}
