//! A browser, driven over the WebDriver protocol (W3C) that chromedriver speaks. Tests find things as people do: by what
//! stands on buttons, links and headings.

use super::machine::{clean_command, eventually, free_addresses, kill_processes_of};
use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub struct Browser {
    address: SocketAddr,
    session: String,
    client: reqwest::Client,
    driver: Child,
    profile: tempfile::TempDir,
}

/// Something on the page.
#[derive(Debug, Clone)]
pub struct Element(String);

impl Browser {
    pub async fn open() -> Browser {
        landfall::github::install_crypto_provider();
        let profile = tempfile::Builder::new().prefix("landfall-browser-").tempdir().expect("a temporary folder");
        let [address] = free_addresses();
        let program = program("chromedriver");
        let log = std::fs::File::create(profile.path().join("driver.log")).expect("a log file");
        let driver = clean_command(&program)
            .arg(format!("--port={}", address.port()))
            .env("HOME", profile.path())
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("chromedriver starts");
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(90)).build().expect("a client");
        let mut browser = Browser { address, session: String::new(), client, driver, profile };
        let ready = async || {
            let status = browser.command(Method::GET, "/status", None).await?;
            anyhow::ensure!(status["ready"] == true, "{status}");
            Ok(())
        };
        eventually(ready).await.expect("chromedriver is ready");
        let data = browser.profile.path().join("profile");
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--no-proxy-server".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--hide-scrollbars".to_owned(),
            "--force-color-profile=srgb".to_owned(),
            "--window-size=1280,900".to_owned(),
            format!("--user-data-dir={}", data.display()),
        ];
        let wish = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments, "binary": self::program("chromium") },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let made = browser.command(Method::POST, "/session", Some(wish)).await.expect("chromium starts");
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    async fn command(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let mut request = self.client.request(method.clone(), format!("http://{}{path}", self.address));
        if method == Method::POST {
            request = request.json(&body.unwrap_or_else(|| json!({})));
        }
        let mut answer: Value = request.send().await?.json().await?;
        let value = answer["value"].take();
        if let Some(error) = value["error"].as_str() {
            anyhow::bail!("{error}: {}", value["message"].as_str().unwrap_or_default());
        }
        Ok(value)
    }

    async fn ask(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.command(Method::POST, &format!("/session/{}{path}", self.session), Some(body)).await
    }

    pub async fn go(&self, url: &str) {
        self.ask("/url", json!({ "url": url })).await.unwrap_or_else(|error| panic!("{url}: {error:#}"));
    }

    pub async fn url(&self) -> String {
        let url = self.command(Method::GET, &format!("/session/{}/url", self.session), None).await;
        url.expect("the page has an address").as_str().expect("text").to_owned()
    }

    /// What a person reads on the page.
    pub async fn text(&self) -> String {
        let text = self.run("return document.body ? document.body.innerText : ''").await;
        text.as_str().unwrap_or_default().to_owned()
    }

    pub async fn run(&self, script: &str) -> Value {
        let ran = self.ask("/execute/sync", json!({ "script": script, "args": [] })).await;
        ran.unwrap_or_else(|error| panic!("{script}: {error:#}"))
    }

    /// Waits until the page says this.
    pub async fn reads(&self, text: &str) {
        let look = async || {
            let page = self.text().await;
            anyhow::ensure!(page.contains(text), "the page says:\n{page}");
            Ok(())
        };
        if let Err(error) = eventually(look).await {
            let url = self.url().await;
            panic!("waited for {url} to say {text:?}; {error:#}");
        }
    }

    /// Waits for a page that has no script of its own, by going there again and again: a form that was sent just before
    /// may lead elsewhere once more.
    pub async fn reads_at(&self, url: &str, text: &str) {
        let look = async || {
            self.ask("/url", json!({ "url": url })).await?;
            let page = self.text().await;
            anyhow::ensure!(page.contains(text), "the page says:\n{page}");
            Ok(())
        };
        if let Err(error) = eventually(look).await {
            panic!("waited for {url} to say {text:?}; {error:#}");
        }
    }

    /// Waits for a page that has no script of its own, by asking for it again.
    pub async fn reads_after_reload(&self, text: &str) {
        let look = async || {
            self.ask("/refresh", json!({})).await?;
            let page = self.text().await;
            anyhow::ensure!(page.contains(text), "the page says:\n{page}");
            Ok(())
        };
        if let Err(error) = eventually(look).await {
            let url = self.url().await;
            panic!("waited for {url} to say {text:?}; {error:#}");
        }
    }

    async fn find(&self, using: &str, value: &str) -> anyhow::Result<Element> {
        let found = self.ask("/element", json!({ "using": using, "value": value })).await?;
        Ok(Element(found[ELEMENT].as_str().unwrap_or_default().to_owned()))
    }

    /// Presses the button that says this.
    pub async fn press(&self, words: &str) {
        self.click(&format!("//button[normalize-space()={}]", quoted(words))).await;
    }

    /// Follows the link that says this.
    pub async fn follow(&self, words: &str) {
        self.click(&format!("//a[normalize-space()={}]", quoted(words))).await;
    }

    /// Clicks what an XPath names, as soon as it is there. The page may change under the pointer: then again.
    pub async fn click(&self, path: &str) {
        let look = async || {
            let Element(id) = self.find("xpath", path).await?;
            self.ask(&format!("/element/{id}/click"), json!({})).await
        };
        if let Err(error) = eventually(look).await {
            panic!("cannot click {path}: {error:#}\nthe page says:\n{}", self.text().await);
        }
    }

    /// Types into the field with this label.
    pub async fn write(&self, label: &str, text: &str) {
        let path = format!("//*[@id=//label[starts-with(normalize-space(), {})]/@for]", quoted(label));
        let look = async || {
            let Element(id) = self.find("xpath", &path).await?;
            self.ask(&format!("/element/{id}/value"), json!({ "text": text })).await
        };
        eventually(look).await.unwrap_or_else(|error| panic!("cannot write into {label:?}: {error:#}"));
    }

    /// The size of what a person sees, in CSS pixels: a phone's are fewer than any window's.
    pub async fn resize(&self, width: u32, height: u32) {
        let metrics = json!({
            "cmd": "Emulation.setDeviceMetricsOverride",
            "params": { "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 },
        });
        self.ask("/goog/cdp/execute", metrics).await.expect("the size can be set");
    }

    /// By how many CSS pixels the page is wider than what a person sees, and what sticks out.
    pub async fn overflow(&self) -> Value {
        self.run(
            "const root = document.documentElement; const over = root.scrollWidth - window.innerWidth; \
             if (over <= 0) return null; \
             const out = [...document.querySelectorAll('body *')] \
               .filter(element => element.getBoundingClientRect().right > window.innerWidth + 0.5) \
               .map(element => element.tagName + '.' + element.className + ': ' + element.textContent.slice(0, 40)); \
             return { over, out: out.slice(0, 10) };",
        )
        .await
    }

    /// What the browser's console was told since the last look: errors, and what a policy kept from loading.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.ask("/se/log", json!({ "type": "browser" })).await.expect("the console can be read");
        let entries = entries.as_array().cloned().unwrap_or_default();
        let serious = entries.iter().filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        let messages = serious.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned());
        // The sample app has no icon, and need not.
        messages.filter(|message| !message.contains(".localhost:") || !message.contains("/favicon.ico")).collect()
    }

    /// Saves what is seen into the folder that `LANDFALL_SCREENSHOTS` names, if it names one.
    pub async fn photograph(&self, name: &str) {
        let Some(folder) = std::env::var_os("LANDFALL_SCREENSHOTS") else { return };
        let picture = self.command(Method::GET, &format!("/session/{}/screenshot", self.session), None).await;
        let picture = picture.expect("a picture");
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(picture.as_str().expect("Base64")).expect("Base64");
        std::fs::create_dir_all(&folder).expect("the folder for pictures");
        std::fs::write(Path::new(&folder).join(name), bytes).expect("write the picture");
    }

    pub async fn close(self) {
        let path = format!("/session/{}", self.session);
        self.command(Method::DELETE, &path, None).await.expect("the browser closes");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        kill_processes_of(self.profile.path());
    }
}

fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not installed: run script/test, or apt-get install chromium chromium-driver")
    })
}

/// A text as XPath writes it; it has no way to escape a quote.
fn quoted(text: &str) -> String {
    assert!(!text.contains('"'), "{text} cannot be quoted");
    format!("\"{text}\"")
}
