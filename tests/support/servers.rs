//! A real PostgreSQL and a real Redis as an operator would run them, for one test each, and a partner that speaks
//! Heroku's Add-on Partner API.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// PostgreSQL refuses to run as root, and as somebody without a name: this is `nobody` on every distribution.
const UID: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Postgres {
    folder: tempfile::TempDir,
    server: Child,
    port: u16,
}

fn as_somebody_else(command: &mut Command) {
    if nix::unistd::geteuid().is_root() {
        command.uid(UID).gid(UID);
    }
}

fn free_port() -> u16 {
    crate::support::machine::free_addresses::<1>()[0].port()
}

impl Postgres {
    pub async fn start() -> Postgres {
        Postgres::with(false).await
    }

    /// As `start`; everybody but the operator must come with TLS. Its certificate is of `hello.localhost`, signed by the
    /// authority in `authority`.
    pub async fn with_tls() -> Postgres {
        Postgres::with(true).await
    }

    async fn with(tls: bool) -> Postgres {
        let programs =
            landfall::addons::find_postgres(None, &[]).expect("PostgreSQL is installed (script/test does it)");
        let folder = tempfile::Builder::new().prefix("landfall-pg-").tempdir().expect("a folder");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(UID), Some(UID)).expect("give the folder");
        }
        std::fs::write(folder.path().join("password"), "pw").expect("write the password");
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args([
            "--no-sync",
            "--auth=scram-sha-256",
            "--username=operator",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]);
        initdb.arg("--pwfile").arg(folder.path().join("password")).arg("-D").arg(folder.path().join("db"));
        std::fs::set_permissions(folder.path().join("password"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .expect("let it be read");
        as_somebody_else(&mut initdb);
        let done = initdb.current_dir("/").output().expect("initdb runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let port = free_port();
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let mut server = Command::new(programs.join("postgres"));
        if tls {
            let certificates = certificates();
            for (name, from) in [("server.crt", "first.pem"), ("server.key", "first.key"), ("ca.pem", "ca.pem")] {
                let path = folder.path().join(name);
                std::fs::copy(certificates.join(from), &path).expect("copy a certificate");
                let mode = if name == "server.key" { 0o600 } else { 0o644 };
                std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("a mode");
                if nix::unistd::geteuid().is_root() {
                    std::os::unix::fs::chown(&path, Some(UID), Some(UID)).expect("give the file");
                }
            }
            let rules = "host all operator all scram-sha-256\nhostssl all all all scram-sha-256\n";
            std::fs::write(folder.path().join("db/pg_hba.conf"), rules).expect("who may come how");
            server.args(["-c", "ssl=on", "-c", "log_connections=on"]);
            for (setting, name) in [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key")] {
                server.arg("-c").arg(format!("{setting}={}", folder.path().join(name).display()));
            }
        }
        server.arg("-D").arg(folder.path().join("db")).args(["-p", &port.to_string(), "-c", "fsync=off"]);
        server.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        server.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        as_somebody_else(&mut server);
        let postgres = Postgres { folder, server: server.spawn().expect("postgres starts"), port };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = postgres.connect("operator", "pw", "postgres").await {
            assert!(Instant::now() < deadline, "PostgreSQL does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        postgres
    }

    pub fn url(&self) -> String {
        format!("postgres://operator:pw@127.0.0.1:{}/postgres", self.port)
    }

    /// The file with the authority that signed its certificate.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The operator's address of it, under this name and with this query; the name need not be known to anybody.
    pub fn url_as(&self, host: &str, query: &str) -> String {
        format!("postgres://operator:pw@{host}:{}/postgres?hostaddr=127.0.0.1&{query}", self.port)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub async fn connect(
        &self,
        user: &str,
        password: &str,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(user).password(password).dbname(database);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub async fn operator(&self, database: &str) -> tokio_postgres::Client {
        self.connect("operator", "pw", database).await.expect("the operator gets in")
    }

    /// Names of databases and roles that are not the server's own.
    pub async fn made(&self) -> Vec<String> {
        let rows = self
            .operator("postgres")
            .await
            .query(
                "SELECT 'database ' || datname FROM pg_database WHERE datname LIKE 'lf\\_%' \
                 UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname LIKE 'lf\\_%' ORDER BY 1",
                &[],
            )
            .await
            .expect("the server answers");
        rows.iter().map(|row| row.get(0)).collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        // Its children end when they see that it is gone.
        let _ = std::fs::remove_dir_all(self.folder.path().join("db"));
    }
}

pub struct Redis {
    _folder: tempfile::TempDir,
    server: Child,
    port: u16,
}

/// Where the certificates of tests lie: `first.pem` is of `hello.localhost`, signed by the authority `ca.pem`.
fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/router/tests/tls")
}

impl Redis {
    pub async fn start() -> Redis {
        Redis::with(false).await
    }

    /// As `start`; it speaks TLS only, with a certificate of `hello.localhost`.
    pub async fn with_tls() -> Redis {
        Redis::with(true).await
    }

    /// The file with the authority that signed its certificate.
    pub fn authority(&self) -> PathBuf {
        certificates().join("ca.pem")
    }

    /// Its address under this name, which need not be known to anybody, and with this query.
    pub fn url_as(&self, scheme: &str, host: &str, query: &str) -> String {
        format!("{scheme}://default:pw@{host}:{}?hostaddr=127.0.0.1&{query}", self.port)
    }

    async fn with(tls: bool) -> Redis {
        let program: PathBuf = landfall::addons::find_redis(&[]).expect("Redis is installed (script/test does it)");
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let mut server = Command::new(program);
        if tls {
            server.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "no"]);
            for (setting, name) in
                [("--tls-cert-file", "first.pem"), ("--tls-key-file", "first.key"), ("--tls-ca-cert-file", "ca.pem")]
            {
                server.arg(setting).arg(certificates().join(name));
            }
        } else {
            server.args(["--port", &port.to_string()]);
        }
        server.args(["--requirepass", "pw", "--save", "", "--bind", "127.0.0.1"]);
        server.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let redis = Redis { _folder: folder, server: server.spawn().expect("redis-server starts"), port };
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(Instant::now() < deadline, "Redis does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        redis
    }

    pub fn url(&self) -> String {
        format!("redis://default:pw@127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// What a partner was asked, and what it keeps.
#[derive(Debug, Default)]
pub struct Kept {
    pub calls: Vec<String>,
    /// UUID → plan of what exists.
    pub resources: BTreeMap<String, String>,
    /// How often a request to provision is answered with 202 first.
    pub slow: usize,
    /// Answers this many requests with 503.
    pub broken: usize,
}

#[derive(Clone)]
pub struct Partner {
    pub kept: Arc<Mutex<Kept>>,
    pub url: String,
    handle: actix_web::dev::ServerHandle,
}

impl Partner {
    pub fn start() -> Partner {
        use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
        let kept = Arc::new(Mutex::new(Kept::default()));
        let shared = web::Data::from(Arc::new(kept.clone()));
        async fn answer(request: HttpRequest, body: web::Bytes, kept: web::Data<Arc<Mutex<Kept>>>) -> HttpResponse {
            let login = request.headers().get("authorization").and_then(|value| value.to_str().ok());
            // acme:pw, as HTTP's basic authentication writes it.
            if login != Some("Basic YWNtZTpwdw==") {
                return HttpResponse::Unauthorized().json(json!({ "message": "who are you?" }));
            }
            let mut kept = kept.lock().expect("no holder panics");
            kept.calls.push(format!("{} {}", request.method(), request.path()));
            if kept.broken > 0 {
                kept.broken -= 1;
                return HttpResponse::ServiceUnavailable().finish();
            }
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let id = request.match_info().get("id").unwrap_or_default().to_owned();
            match request.method().as_str() {
                "POST" => {
                    let plan = body["plan"].as_str().unwrap_or_default().to_owned();
                    if plan == "unheard-of" {
                        return HttpResponse::UnprocessableEntity().json(json!({ "message": "no such plan" }));
                    }
                    let uuid = body["uuid"].as_str().expect("a uuid").to_owned();
                    kept.resources.insert(uuid.clone(), plan);
                    if kept.slow > 0 {
                        kept.slow -= 1;
                        return HttpResponse::Accepted().json(json!({ "id": uuid, "message": "working on it" }));
                    }
                    let config = json!({ "ACME_URL": format!("https://acme.test/{uuid}") });
                    HttpResponse::Created().json(json!({ "id": uuid, "config": config }))
                }
                "PUT" => match kept.resources.get_mut(&id) {
                    Some(plan) => {
                        *plan = body["plan"].as_str().unwrap_or_default().to_owned();
                        HttpResponse::Ok().json(json!({ "message": "changed" }))
                    }
                    None => HttpResponse::NotFound().finish(),
                },
                _ => match kept.resources.remove(&id) {
                    Some(_) => HttpResponse::NoContent().finish(),
                    None => HttpResponse::Gone().finish(),
                },
            }
        }
        let server = HttpServer::new(move || {
            App::new()
                .app_data(shared.clone())
                .route("/heroku/resources", web::post().to(answer))
                .route("/heroku/resources/{id}", web::put().to(answer))
                .route("/heroku/resources/{id}", web::delete().to(answer))
        })
        .workers(1)
        .disable_signals()
        .bind(("127.0.0.1", 0))
        .expect("a free port");
        let url = format!("http://{}", server.addrs()[0]);
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        Partner { kept, url, handle }
    }

    pub fn calls(&self) -> Vec<String> {
        self.kept.lock().expect("no holder panics").calls.clone()
    }

    pub fn resources(&self) -> BTreeMap<String, String> {
        self.kept.lock().expect("no holder panics").resources.clone()
    }

    pub async fn stop(self) {
        self.handle.stop(false).await;
    }
}
