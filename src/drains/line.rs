//! A log line in the forms that it leaves in.

use crate::clock::Timestamp;
use crate::domain::AppName;

/// as on Heroku, a line has at most 10,000 bytes.
const LONGEST: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The app printed it.
    App,
    /// Landfall says it of the app.
    Landfall,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub at: Timestamp,
    pub app: AppName,
    pub origin: Origin,
    /// `web.1`, `router`, `api`.
    pub process: String,
    pub text: String,
}

impl Line {
    /// RFC 5424: `<190>1 2026-11-22T23:19:37.004Z hello-staging app web.1 - - text`.
    pub fn syslog(&self) -> Vec<u8> {
        self.message("- - ")
    }

    /// Heroku's form: as RFC 5424, but without structured data, which its readers do not expect.
    pub fn logplex(&self) -> Vec<u8> {
        self.message("- ")
    }

    fn message(&self, between: &str) -> Vec<u8> {
        // Facility and severity are Heroku's: local7.info for apps, local3.info for the platform.
        let (priority, source) = match self.origin {
            Origin::App => (190, "app"),
            Origin::Landfall => (158, "landfall"),
        };
        let at = self.at.rfc3339();
        let at = format!("{}.{:03}Z", at.trim_end_matches('Z'), self.at.0.rem_euclid(1000));
        let process = name(&self.process);
        let mut message = format!("<{priority}>1 {at} {} {source} {process} {between}", self.app).into_bytes();
        let mut end = self.text.len().min(LONGEST);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        message
            .extend(self.text[..end].bytes().map(|byte| if matches!(byte, b'\n' | b'\r' | 0) { b' ' } else { byte }));
        message
    }
}

/// RFC 5424's PROCID: printable ASCII, 128 at most.
fn name(text: &str) -> String {
    let name: String = text.chars().filter(char::is_ascii_graphic).take(128).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

/// RFC 6587's octet counting: how long the message is, a space, the message.
pub fn counted(message: &[u8]) -> Vec<u8> {
    let mut frame = format!("{} ", message.len()).into_bytes();
    frame.extend_from_slice(message);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        let (app, process) = ("hello-staging".parse().unwrap(), "web.1".to_owned());
        Line { at: Timestamp(1_795_389_577_004), app, origin: Origin::App, process, text: text.to_owned() }
    }

    #[test]
    fn lines_are_in_the_forms_of_the_documents() {
        let said = line("GET / é");
        let expected = "<190>1 2026-11-22T23:19:37.004Z hello-staging app web.1 - - GET / é";
        assert_eq!(String::from_utf8(said.syslog()).unwrap(), expected);
        let frame = counted(&said.syslog());
        assert_eq!(frame, format!("{} {expected}", expected.len()).into_bytes());
        let router = Line { origin: Origin::Landfall, process: "router".to_owned(), ..said };
        let expected = "<158>1 2026-11-22T23:19:37.004Z hello-staging landfall router - GET / é";
        assert_eq!(String::from_utf8(router.logplex()).unwrap(), expected);
    }

    #[test]
    fn what_an_app_prints_ends_no_message() {
        let hostile = line("a\n<0>1 - root su - - b\0\r\n");
        let said = hostile.logplex();
        assert!(said.ends_with(b" - a <0>1 - root su - - b   "), "{}", String::from_utf8_lossy(&said));
        let long = line(&"é".repeat(9_000));
        assert!(long.syslog().len() < LONGEST + 100);
        assert!(String::from_utf8(long.syslog()).is_ok());
        let named = Line { process: "web 1\n<0>".to_owned(), ..line("x") };
        assert!(String::from_utf8(named.syslog()).unwrap().contains(" app web1<0> - - x"));
    }
}
