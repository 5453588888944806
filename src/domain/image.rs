//! What a container image says of how it is run, and what `heroku.yml` says of how it is built: both read without
//! trust, and only as far as they are honoured.

use super::{is_command, is_process_type};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// How an image wants to be run. Its root lies in the slug's [`IMAGE_ROOT`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Image {
    /// `WORKDIR`.
    pub directory: String,
    /// `USER`, as a number; never 0: as on Heroku, nothing runs as root.
    pub user: u32,
    pub group: u32,
    pub home: String,
    /// `ENV`.
    pub environment: BTreeMap<String, String>,
    /// What it `EXPOSE`s, where that is one port that needs no rights.
    pub port: Option<u16>,
    /// `ENTRYPOINT` and `CMD`, as one line for a shell.
    pub command: Option<String>,
}

/// Where the root of an image lies in its slug.
pub const IMAGE_ROOT: &str = ".landfall/root";

const MOST_VARIABLES: usize = 200;

impl Image {
    /// Reads what `buildah inspect` or `docker image inspect` prints. `passwd` is the image's own file of users, and
    /// `nobody` whom it runs as where it asks for root or says nothing.
    pub fn read(inspected: &[u8], passwd: &str, nobody: u32) -> Option<Image> {
        let json: Value = serde_json::from_slice(inspected).ok()?;
        let config = match (&json["OCIv1"]["config"], &json[0]["Config"]) {
            (config @ Value::Object(_), _) | (_, config @ Value::Object(_)) => config,
            _ => return None,
        };
        let text = |name: &str| config[name].as_str().unwrap_or_default().to_owned();
        let words = |name: &str| -> Vec<String> {
            let list = config[name].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let (user, group, home) = find_user(&text("User"), passwd, nobody);
        let directory = Some(text("WorkingDir")).filter(|path| is_plain_path(path)).unwrap_or_else(|| "/".to_owned());
        let environment = words("Env")
            .into_iter()
            .filter_map(|pair| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
            .filter(|(name, value)| super::is_variable_name(name) && !value.contains('\0'))
            .take(MOST_VARIABLES)
            .collect();
        let ports: Vec<u16> = config["ExposedPorts"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(port, _)| port.strip_suffix("/tcp").unwrap_or(port).parse().ok())
            .collect();
        let command = [words("Entrypoint"), words("Cmd")].concat();
        let line = command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        Some(Image {
            home: home.filter(|home| is_plain_path(home)).unwrap_or_else(|| directory.clone()),
            directory,
            user,
            group,
            environment,
            port: match ports.as_slice() {
                [port] if *port >= 1024 => Some(*port),
                _ => None,
            },
            command: Some(format!("exec {line}")).filter(|line| !command.is_empty() && is_command(line)),
        })
    }
}

fn is_plain_path(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.chars().any(char::is_control)
}

/// Number, group and home of `name`, `number`, `name:group` or `number:group`.
fn find_user(asked: &str, passwd: &str, nobody: u32) -> (u32, u32, Option<String>) {
    let (user, group) = asked.split_once(':').map_or((asked, None), |(user, group)| (user, Some(group)));
    let lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.filter(|fields| fields.len() >= 6).find(|fields| fields[0] == user || fields[2] == user);
    let number = found.as_ref().and_then(|fields| fields[2].parse().ok()).or_else(|| user.parse().ok());
    // The kernel's highest numbers mean "none".
    let Some(number) = number.filter(|number: &u32| *number > 0 && *number < 1 << 31) else {
        return (nobody, nobody, None);
    };
    let own_group = found.as_ref().and_then(|fields| fields[3].parse().ok());
    let group = group.and_then(|group| group.parse().ok()).or(own_group).filter(|group| *group > 0 && *group < 1 << 31);
    (number, group.unwrap_or(number), found.map(|fields| fields[5].to_owned()))
}

/// A word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// What is read of `heroku.yml`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HerokuYml {
    /// `build.docker`: process type → Dockerfile, in its order.
    pub dockerfiles: Vec<(String, String)>,
    /// `run`, and `release` as the type of that name.
    pub commands: Vec<(String, String)>,
}

impl HerokuYml {
    /// Reads the form in which people write it: mappings by indentation, lists of plain or quoted lines. What has another
    /// form is passed over.
    pub fn parse(text: &str) -> HerokuYml {
        let mut file = HerokuYml::default();
        let mut path: Vec<(usize, String)> = Vec::new();
        for line in text.lines().take(1000) {
            let content = line.trim();
            if content.is_empty() || content.starts_with('#') || content.starts_with("---") {
                continue;
            }
            let indent = line.len() - line.trim_start().len();
            if let Some(item) = content.strip_prefix('-') {
                while path.last().is_some_and(|(at, _)| *at > indent) {
                    path.pop();
                }
                file.take(&path, unquoted(item.trim()));
                continue;
            }
            while path.last().is_some_and(|(at, _)| *at >= indent) {
                path.pop();
            }
            let Some((key, value)) = content.split_once(':') else { continue };
            path.push((indent, unquoted(key.trim())));
            if !value.trim().is_empty() {
                file.take(&path, unquoted(value.trim()));
                path.pop();
            }
        }
        file
    }

    fn take(&mut self, path: &[(usize, String)], value: String) {
        let keys: Vec<&str> = path.iter().map(|(_, key)| key.as_str()).collect();
        let command = match keys.as_slice() {
            ["build", "docker", kind] => {
                self.dockerfiles.push(((*kind).to_owned(), value));
                return;
            }
            ["run", kind] | ["run", kind, "command"] => *kind,
            ["release", "command"] => "release",
            _ => return,
        };
        if !is_process_type(command) || !is_command(&value) {
            return;
        }
        match self.commands.iter_mut().find(|(known, _)| known == command) {
            // Several lines of one command are one after the other.
            Some((_, line)) => *line = format!("{line} && {value}"),
            None => self.commands.push((command.to_owned(), value)),
        }
    }

    /// The Dockerfile of the image that is built: the web process', else the first one.
    pub fn dockerfile(&self) -> Option<&str> {
        let web = self.dockerfiles.iter().find(|(kind, _)| kind == "web").or(self.dockerfiles.first());
        web.map(|(_, path)| path.as_str())
    }
}

fn unquoted(text: &str) -> String {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    text.split(" #").next().unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001:n:/home/node:/bin/sh\n";

    fn image(config: &Value) -> Image {
        let docker = serde_json::json!([{ "Config": config }]).to_string();
        let buildah = serde_json::json!({ "OCIv1": { "config": config } }).to_string();
        let read = |text: String| Image::read(text.as_bytes(), PASSWD, 10_001).unwrap();
        assert_eq!(read(docker.clone()), read(buildah), "both say the same");
        read(docker)
    }

    #[test]
    fn an_image_is_run_as_it_says() {
        let said = image(&serde_json::json!({
            "Env": ["PATH=/bin", "GREETING=a=b", "no name=1"], "Entrypoint": ["/bin/my server", "it's"],
            "Cmd": ["-p", "80"], "WorkingDir": "/srv", "User": "node", "ExposedPorts": { "3000/tcp": {} },
        }));
        assert_eq!(said.command.as_deref(), Some("exec '/bin/my server' 'it'\\''s' -p 80"));
        assert_eq!((said.user, said.group, said.home.as_str()), (1000, 1001, "/home/node"));
        assert_eq!((said.directory.as_str(), said.port), ("/srv", Some(3000)));
        let expected = [("GREETING", "a=b"), ("PATH", "/bin")];
        assert!(said.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected));
    }

    #[test]
    fn nothing_runs_as_root_and_hostile_words_lead_nowhere() {
        for user in ["", "root", "0", "0:0", "-1", "4294967295", "nobody-knows"] {
            let said = image(&serde_json::json!({ "User": user, "WorkingDir": "/a/../..", "ExposedPorts": {
                "80/tcp": {} } }));
            assert_eq!((said.user, said.group, said.directory.as_str()), (10_001, 10_001, "/"), "{user}");
            assert_eq!((said.port, said.command), (None, None), "{user}");
        }
        assert_eq!(image(&serde_json::json!({ "User": "1234:77" })).group, 77);
        assert!(Image::read(b"[]", "", 1).is_none() && Image::read(b"nonsense", "", 1).is_none());
    }

    #[test]
    fn heroku_yml_names_images_and_commands() {
        let file = HerokuYml::parse(
            "setup:\n  addons:\n    - plan: heroku-postgresql\nbuild:\n  docker:\n    worker: worker/Dockerfile\n    \
             web: web/Dockerfile # the page\n  config:\n    A: b\nrelease:\n  command:\n    - ./one\n    - \"./two x\"\n  \
             image: web\nrun:\n  web: bundle exec puma -p $PORT\n  worker:\n    command:\n      - python worker.py\n    \
             image: web\n  \"bad type\": x\n",
        );
        assert_eq!(file.dockerfile(), Some("web/Dockerfile"));
        let commands: Vec<(&str, &str)> =
            file.commands.iter().map(|(kind, command)| (kind.as_str(), command.as_str())).collect();
        let expected =
            [("release", "./one && ./two x"), ("web", "bundle exec puma -p $PORT"), ("worker", "python worker.py")];
        assert_eq!(commands, expected);
        assert_eq!(HerokuYml::parse("- x\n:\n::\nbuild: docker\n"), HerokuYml::default());
    }
}
