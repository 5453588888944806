//! `app.json`: what an app needs besides its code, in Heroku's format.
//!
//! A key that nobody knows is a warning, since the format grew over the years; a known key with the wrong shape is an
//! error that names its line, since guessing would deploy something else than was written. What a section under
//! `environments` says about a key replaces what the top level says about it, whole: `environments.test.env` is all
//! of the test environment's variables, not an addition to them.

mod walk;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use walk::Value;

/// A whole `app.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Manifest {
    pub name: Option<String>,
    pub description: Option<String>,
    pub keywords: Vec<String>,
    pub website: Option<String>,
    pub repository: Option<String>,
    pub logo: Option<String>,
    pub success_url: Option<String>,
    /// The top level's settings.
    pub base: Settings,
    /// `environments.review`.
    pub review: Settings,
    /// `environments.test`.
    pub test: Settings,
}

/// The keys that an environment may replace; `None` where the file doesn't say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Settings {
    pub scripts: Option<Scripts>,
    pub env: Option<BTreeMap<String, Variable>>,
    pub formation: Option<BTreeMap<String, FormationEntry>>,
    pub addons: Option<Vec<AddonRequest>>,
    /// Shorthands, addresses or paths, in order.
    pub buildpacks: Option<Vec<String>>,
    pub stack: Option<String>,
    pub image: Option<String>,
}

/// Which of a manifest's faces is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    /// Staging and production: the top level as it stands.
    Plain,
    Review,
    Test,
}

/// The settings that hold in one environment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Effective {
    pub scripts: Scripts,
    pub env: BTreeMap<String, Variable>,
    pub formation: BTreeMap<String, FormationEntry>,
    pub addons: Vec<AddonRequest>,
    pub buildpacks: Vec<String>,
    pub stack: Option<String>,
    pub image: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scripts {
    pub postdeploy: Option<String>,
    pub pr_predestroy: Option<String>,
    pub test_setup: Option<String>,
    pub test: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    pub description: Option<String>,
    pub value: Option<String>,
    pub required: bool,
    pub generator: Option<Generator>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generator {
    /// 64 hex digits, made once per app.
    Secret,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormationEntry {
    pub quantity: u32,
    /// A dyno size in lower case, such as `standard-1x`.
    pub size: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddonRequest {
    /// `heroku-postgresql`, `heroku-redis:in-dyno`, …
    pub plan: String,
    /// The prefix of its config var, from `as`.
    pub name: Option<String>,
    pub options: BTreeMap<String, String>,
}

/// Something in the file that was not taken as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestWarning {
    pub line: u32,
    /// The way to it, such as `environments.test.formation`.
    pub path: String,
    pub kind: ManifestWarningKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManifestWarningKind {
    UnknownKey,
    /// The key stands twice in its object; the later one holds.
    Duplicate,
    /// The variable is set by Landfall itself, or could change how programs are found and loaded.
    ReservedVariable,
    /// The stack is not one of Heroku's own: code always runs on this machine's system.
    UnsupportedStack,
    UnsupportedImage,
    /// Both `value` and `generator` are given; the value holds.
    ValueAndGenerator,
}

/// Why a manifest is refused, and where. Line and column count from 1; they are 0 when the file as a whole is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestError {
    pub line: u32,
    pub column: u32,
    /// The way to the value, such as `env.SECRET.value`; empty for a syntax error.
    pub path: String,
    pub kind: ManifestErrorKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ManifestErrorKind {
    TooLarge { limit: usize },
    NotText,
    Syntax { message: String },
    Expected { expected: String, found: String },
    OutOfRange { least: u32, most: u32 },
    InvalidVariableName,
    InvalidProcessType,
    InvalidSize,
    InvalidText,
    UnknownGenerator,
    Missing { key: String },
    TooMany { most: usize },
}

/// Bytes that an `app.json` may have.
pub const MANIFEST_CAP: usize = 64 << 10;
/// Nodes of one test run. Heroku stops at 32.
pub const MOST_TEST_NODES: u32 = 64;
/// Processes of one type.
pub const MOST_PROCESSES: u32 = 100;
const MOST_VARIABLES: usize = 500;
const MOST_ENTRIES: usize = 20;
const MOST_WARNINGS: usize = 50;

type Found<T> = Result<T, ManifestError>;

impl Manifest {
    pub fn parse(bytes: &[u8]) -> Result<(Manifest, Vec<ManifestWarning>), ManifestError> {
        let whole = |kind| ManifestError { line: 0, column: 0, path: String::new(), kind };
        if bytes.len() > MANIFEST_CAP {
            return Err(whole(ManifestErrorKind::TooLarge { limit: MANIFEST_CAP }));
        }
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        let text = std::str::from_utf8(bytes).map_err(|_| whole(ManifestErrorKind::NotText))?;
        let mut warnings = Vec::new();
        let manifest = read_manifest(&Value::document(text)?, &mut warnings)?;
        warnings.truncate(MOST_WARNINGS);
        Ok((manifest, warnings))
    }

    pub fn for_environment(&self, environment: Environment) -> Effective {
        let own = match environment {
            Environment::Plain => &Settings::default(),
            Environment::Review => &self.review,
            Environment::Test => &self.test,
        };
        let Settings { scripts, env, formation, addons, buildpacks, stack, image } = own;
        let base = &self.base;
        fn choose<T: Clone>(own: &Option<T>, base: &Option<T>) -> Option<T> {
            own.as_ref().or(base.as_ref()).cloned()
        }
        Effective {
            scripts: choose(scripts, &base.scripts).unwrap_or_default(),
            env: choose(env, &base.env).unwrap_or_default(),
            formation: choose(formation, &base.formation).unwrap_or_default(),
            addons: choose(addons, &base.addons).unwrap_or_default(),
            buildpacks: choose(buildpacks, &base.buildpacks).unwrap_or_default(),
            stack: choose(stack, &base.stack),
            image: choose(image, &base.image),
        }
    }
}

impl Effective {
    /// How many nodes the tests are spread over: `formation.test.quantity`, 1 when it isn't given.
    pub fn test_nodes(&self) -> u32 {
        self.formation.get("test").map_or(1, |entry| entry.quantity.max(1))
    }
}

/// Whether a text can name a config var.
pub fn is_variable_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 128
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether a config var would shadow what Landfall gives to every process, or how programs are found and loaded.
pub fn is_reserved_variable(name: &str) -> bool {
    matches!(name, "PORT" | "PATH" | "HOME" | "DYNO")
        || ["LD_", "LANDFALL_", "HEROKU_"].iter().any(|prefix| name.starts_with(prefix))
}

fn read_manifest(document: &Value<'_>, warnings: &mut Vec<ManifestWarning>) -> Found<Manifest> {
    let mut manifest = Manifest::default();
    for member in members(document, warnings)? {
        let value = &member.value;
        match member.key.as_str() {
            "name" => manifest.name = Some(value.string()?),
            "description" => manifest.description = Some(value.string()?),
            "keywords" => manifest.keywords = value.items()?.iter().map(Value::string).collect::<Found<_>>()?,
            "website" => manifest.website = Some(value.string()?),
            "repository" => manifest.repository = Some(value.string()?),
            "logo" => manifest.logo = Some(value.string()?),
            "success_url" => manifest.success_url = Some(value.string()?),
            // Written by editors and Heroku's own tools; it says nothing about the app.
            "$schema" => {}
            "environments" => {
                for section in members(value, warnings)? {
                    let settings = match section.key.as_str() {
                        "review" => &mut manifest.review,
                        "test" => &mut manifest.test,
                        _ => {
                            warnings.push(unknown(&section));
                            continue;
                        }
                    };
                    let is_test = section.key == "test";
                    for member in members(&section.value, warnings)? {
                        if !read_setting(settings, &member, is_test, warnings)? {
                            warnings.push(unknown(&member));
                        }
                    }
                }
            }
            _ => {
                if !read_setting(&mut manifest.base, &member, false, warnings)? {
                    warnings.push(unknown(&member));
                }
            }
        }
    }
    Ok(manifest)
}

/// Reads one of the keys that may stand on the top level and under an environment; says whether it was one.
fn read_setting(
    settings: &mut Settings,
    member: &walk::Member<'_>,
    is_test: bool,
    warnings: &mut Vec<ManifestWarning>,
) -> Found<bool> {
    let value = &member.value;
    match member.key.as_str() {
        "scripts" => settings.scripts = Some(read_scripts(value, warnings)?),
        "env" => settings.env = Some(read_env(value, warnings)?),
        "formation" => settings.formation = Some(read_formation(value, is_test, warnings)?),
        "addons" => settings.addons = Some(read_addons(value, warnings)?),
        "buildpacks" => settings.buildpacks = Some(read_buildpacks(value, warnings)?),
        "stack" => {
            let stack = one_line(value)?;
            if !stack.strip_prefix("heroku-").is_some_and(|year| year.bytes().all(|byte| byte.is_ascii_digit())) {
                warnings.push(warning(member, ManifestWarningKind::UnsupportedStack));
            }
            settings.stack = Some(stack);
        }
        "image" => {
            warnings.push(warning(member, ManifestWarningKind::UnsupportedImage));
            settings.image = Some(one_line(value)?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn read_scripts(value: &Value<'_>, warnings: &mut Vec<ManifestWarning>) -> Found<Scripts> {
    let mut scripts = Scripts::default();
    for member in members(value, warnings)? {
        let script = match member.key.as_str() {
            "postdeploy" => &mut scripts.postdeploy,
            "pr-predestroy" => &mut scripts.pr_predestroy,
            "test-setup" => &mut scripts.test_setup,
            "test" => &mut scripts.test,
            _ => {
                warnings.push(unknown(&member));
                continue;
            }
        };
        let mut command = member.value.clone();
        if !command.is_string() {
            // `{"command": …, "size": …}` is Heroku's longer way to write it.
            let mut found = None;
            for part in members(&command, warnings)? {
                match part.key.as_str() {
                    "command" => found = Some(part.value),
                    _ => warnings.push(unknown(&part)),
                }
            }
            command = found.ok_or_else(|| missing(&member.value, "command"))?;
        }
        let text = command.string()?;
        if text.contains('\0') {
            return Err(command.error(ManifestErrorKind::InvalidText));
        }
        *script = Some(text).filter(|text| !text.trim().is_empty());
    }
    Ok(scripts)
}

fn read_env(value: &Value<'_>, warnings: &mut Vec<ManifestWarning>) -> Found<BTreeMap<String, Variable>> {
    let mut variables = BTreeMap::new();
    for member in members(value, warnings)? {
        if !is_variable_name(&member.key) {
            return Err(member.value.error(ManifestErrorKind::InvalidVariableName));
        }
        let variable = read_variable(&member, warnings)?;
        if is_reserved_variable(&member.key) {
            warnings.push(warning(&member, ManifestWarningKind::ReservedVariable));
            continue;
        }
        variables.insert(member.key, variable);
    }
    at_most(value, variables.len(), MOST_VARIABLES)?;
    Ok(variables)
}

fn read_variable(member: &walk::Member<'_>, warnings: &mut Vec<ManifestWarning>) -> Found<Variable> {
    let mut variable = Variable { description: None, value: None, required: true, generator: None };
    if member.value.is_string() {
        variable.value = Some(value_of_variable(&member.value)?);
        return Ok(variable);
    }
    for part in members(&member.value, warnings)? {
        match part.key.as_str() {
            "description" => variable.description = Some(part.value.string()?),
            "value" => variable.value = Some(value_of_variable(&part.value)?),
            "required" => variable.required = part.value.boolean()?,
            "generator" => {
                if part.value.string()? != "secret" {
                    return Err(part.value.error(ManifestErrorKind::UnknownGenerator));
                }
                variable.generator = Some(Generator::Secret);
            }
            _ => warnings.push(unknown(&part)),
        }
    }
    if variable.value.is_some() && variable.generator.is_some() {
        warnings.push(warning(member, ManifestWarningKind::ValueAndGenerator));
        variable.generator = None;
    }
    Ok(variable)
}

fn value_of_variable(value: &Value<'_>) -> Found<String> {
    let text = value.string()?;
    if text.contains('\0') { Err(value.error(ManifestErrorKind::InvalidText)) } else { Ok(text) }
}

fn read_formation(
    value: &Value<'_>,
    is_test: bool,
    warnings: &mut Vec<ManifestWarning>,
) -> Found<BTreeMap<String, FormationEntry>> {
    let mut formation = BTreeMap::new();
    for member in members(value, warnings)? {
        if !super::is_process_type(&member.key) {
            return Err(member.value.error(ManifestErrorKind::InvalidProcessType));
        }
        let mut entry = FormationEntry { quantity: 1, size: None };
        for part in members(&member.value, warnings)? {
            match part.key.as_str() {
                "quantity" if is_test && member.key == "test" => {
                    entry.quantity = part.value.number(1, MOST_TEST_NODES)?;
                }
                "quantity" => entry.quantity = part.value.number(0, MOST_PROCESSES)?,
                "size" => {
                    let size = part.value.string()?.to_ascii_lowercase();
                    if size.is_empty()
                        || size.len() > 32
                        || !size.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                    {
                        return Err(part.value.error(ManifestErrorKind::InvalidSize));
                    }
                    entry.size = Some(size);
                }
                _ => warnings.push(unknown(&part)),
            }
        }
        formation.insert(member.key, entry);
    }
    at_most(value, formation.len(), MOST_ENTRIES)?;
    Ok(formation)
}

fn read_addons(value: &Value<'_>, warnings: &mut Vec<ManifestWarning>) -> Found<Vec<AddonRequest>> {
    let mut addons = Vec::new();
    for item in value.items()? {
        if item.is_string() {
            addons.push(AddonRequest { plan: one_line(&item)?, name: None, options: BTreeMap::new() });
            continue;
        }
        let (mut plan, mut name, mut options) = (None, None, BTreeMap::new());
        for part in members(&item, warnings)? {
            match part.key.as_str() {
                "plan" => plan = Some(one_line(&part.value)?),
                "as" => {
                    let prefix = part.value.string()?;
                    if !is_variable_name(&prefix) {
                        return Err(part.value.error(ManifestErrorKind::InvalidVariableName));
                    }
                    name = Some(prefix);
                }
                "options" => {
                    for option in members(&part.value, warnings)? {
                        options.insert(option.key, option.value.string()?);
                    }
                }
                _ => warnings.push(unknown(&part)),
            }
        }
        let plan = plan.ok_or_else(|| missing(&item, "plan"))?;
        addons.push(AddonRequest { plan, name, options });
    }
    at_most(value, addons.len(), MOST_ENTRIES)?;
    Ok(addons)
}

fn read_buildpacks(value: &Value<'_>, warnings: &mut Vec<ManifestWarning>) -> Found<Vec<String>> {
    let mut buildpacks = Vec::new();
    for item in value.items()? {
        if item.is_string() {
            buildpacks.push(one_line(&item)?);
            continue;
        }
        let mut url = None;
        for part in members(&item, warnings)? {
            match part.key.as_str() {
                "url" => url = Some(one_line(&part.value)?),
                _ => warnings.push(unknown(&part)),
            }
        }
        buildpacks.push(url.ok_or_else(|| missing(&item, "url"))?);
    }
    at_most(value, buildpacks.len(), MOST_ENTRIES)?;
    Ok(buildpacks)
}

/// A short text without blanks: a name, a plan, an address.
fn one_line(value: &Value<'_>) -> Found<String> {
    let text = value.string()?;
    if text.is_empty() || text.len() > 1024 || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(value.error(ManifestErrorKind::InvalidText));
    }
    Ok(text)
}

/// The members of an object, each key once: of two equal ones the later holds.
fn members<'a>(value: &Value<'a>, warnings: &mut Vec<ManifestWarning>) -> Found<Vec<walk::Member<'a>>> {
    let mut once: Vec<walk::Member<'a>> = Vec::new();
    let mut places = BTreeMap::new();
    for member in value.members()? {
        match places.get(&member.key) {
            Some(place) => {
                warnings.push(warning(&member, ManifestWarningKind::Duplicate));
                once[*place] = member;
            }
            None => {
                places.insert(member.key.clone(), once.len());
                once.push(member);
            }
        }
    }
    Ok(once)
}

fn at_most(value: &Value<'_>, count: usize, most: usize) -> Found<()> {
    if count > most { Err(value.error(ManifestErrorKind::TooMany { most })) } else { Ok(()) }
}

fn missing(value: &Value<'_>, key: &str) -> ManifestError {
    value.error(ManifestErrorKind::Missing { key: key.to_owned() })
}

fn unknown(member: &walk::Member<'_>) -> ManifestWarning {
    warning(member, ManifestWarningKind::UnknownKey)
}

fn warning(member: &walk::Member<'_>, kind: ManifestWarningKind) -> ManifestWarning {
    ManifestWarning { line: member.line, path: member.value.path.chars().take(200).collect(), kind }
}

impl fmt::Display for ManifestWarning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match self.kind {
            ManifestWarningKind::UnknownKey => "is not known and is ignored",
            ManifestWarningKind::Duplicate => "stands there twice; the later one holds",
            ManifestWarningKind::ReservedVariable => "is set by the platform and is ignored",
            ManifestWarningKind::UnsupportedStack => "names a stack that is not available; the machine's own is used",
            ManifestWarningKind::UnsupportedImage => "is not supported; buildpacks are used",
            ManifestWarningKind::ValueAndGenerator => "has both a value and a generator; the value holds",
        };
        write!(formatter, "line {}: {} {said}", self.line, self.path.escape_debug())
    }
}

impl std::error::Error for ManifestError {}

impl fmt::Display for ManifestError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(formatter, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(formatter, "{} ", self.path.escape_debug())?;
        }
        match &self.kind {
            ManifestErrorKind::TooLarge { limit } => write!(formatter, "the file is larger than {limit} bytes"),
            ManifestErrorKind::NotText => write!(formatter, "the file is not UTF-8 text"),
            ManifestErrorKind::Syntax { message } => write!(formatter, "{message}"),
            ManifestErrorKind::Expected { expected, found } => write!(formatter, "must be {expected}, not {found}"),
            ManifestErrorKind::OutOfRange { least, most } => {
                write!(formatter, "must be a whole number from {least} to {most}")
            }
            ManifestErrorKind::InvalidVariableName => {
                write!(formatter, "is not a name of a variable (A-Z, a-z, 0-9 and _, no digit first)")
            }
            ManifestErrorKind::InvalidProcessType => {
                write!(formatter, "is not a process type (1 to 32 of A-Z, a-z, 0-9, _ and -)")
            }
            ManifestErrorKind::InvalidSize => write!(formatter, "is not a name of a size"),
            ManifestErrorKind::InvalidText => write!(formatter, "is empty, too long or holds characters it must not"),
            ManifestErrorKind::UnknownGenerator => write!(formatter, "must be \"secret\""),
            ManifestErrorKind::Missing { key } => write!(formatter, "lacks the key {key:?}"),
            ManifestErrorKind::TooMany { most } => write!(formatter, "holds more than {most} entries"),
        }
    }
}

#[cfg(test)]
mod tests;
