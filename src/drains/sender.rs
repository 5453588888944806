//! Sends what waits for one receiver, for ever: reconnects with growing pauses, and sends a batch again until it is
//! taken. Syslog knows no answer, so a batch counts as taken once the receiver's machine has acknowledged its last byte: what
//! lay in this machine's buffer when a connection broke is sent once more.

use super::buffer::{Batch, Buffer};
use super::line::{Line, Origin, counted};
use super::target::Target;
use crate::clock::{Clock, Timestamp};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// To reach a receiver, and for it to take a batch.
const CONNECT: Duration = Duration::from_secs(10);
const TAKEN: Duration = Duration::from_secs(30);
/// For a receiver of syslog to take what was sent: one that reads nothing for a while is not sent it again and again.
const ACKNOWLEDGED: Duration = Duration::from_secs(300);
/// Between two tries: at first, and at most.
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {detail}")]
    Authority { path: String, detail: String },
    #[error("the certificates cannot be used: {0}")]
    Unusable(String),
}

/// What all senders share.
#[derive(Clone)]
pub struct Senders {
    pub tls: Arc<rustls::ClientConfig>,
    pub http: reqwest::Client,
    pub clock: Clock,
}

/// Whom receivers are believed by: the machine's authorities, and those of a file.
pub fn tls(authorities: Option<&Path>) -> Result<rustls::ClientConfig, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = authorities {
        let failed = |detail: String| TlsError::Authority { path: path.display().to_string(), detail };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| TlsError::Unusable(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

impl Senders {
    pub fn new(authorities: Option<&Path>, clock: Clock) -> Result<Senders, TlsError> {
        let tls = tls(authorities)?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(tls.clone())
            .connect_timeout(CONNECT)
            .timeout(TAKEN)
            .user_agent(concat!("landfall/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| TlsError::Unusable(error.to_string()))?;
        Ok(Senders { tls: Arc::new(tls), http, clock })
    }

    pub async fn run(self, target: Target, id: String, buffer: Arc<Buffer>) {
        match &target {
            Target::Https { url } => self.post_all(url, &id, &buffer).await,
            Target::Tcp { .. } | Target::Tls { .. } => self.stream_all(&target, &buffer).await,
        }
    }

    async fn stream_all(&self, target: &Target, buffer: &Buffer) {
        let mut connection: Option<Connection> = None;
        let mut pause = SHORTEST;
        loop {
            let batch = buffer.take().await;
            let mut bytes = Vec::new();
            for line in lost_line(&batch, self.clock.now()).iter().chain(batch.lines.iter().map(AsRef::as_ref)) {
                bytes.extend(counted(&line.syslog()));
            }
            loop {
                match self.stream(target, &mut connection, &bytes).await {
                    Ok(()) => break,
                    Err(error) => {
                        if let Some(broken) = connection.take() {
                            broken.forget();
                        }
                        buffer.failing(error.to_string());
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST);
                    }
                }
            }
            pause = SHORTEST;
            buffer.sent(&batch);
        }
    }

    async fn stream(&self, target: &Target, connection: &mut Option<Connection>, bytes: &[u8]) -> io::Result<()> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        // A receiver that hung up while nothing was sent would take one more write without an error.
        if let Some(open) = connection
            && open.is_closed().await
        {
            *connection = None;
        }
        let open = match connection {
            Some(open) => open,
            None => connection.insert(tokio::time::timeout(CONNECT, self.connect(target)).await.map_err(late)??),
        };
        let written = async {
            open.stream.write_all(bytes).await?;
            open.stream.flush().await
        };
        tokio::time::timeout(TAKEN, written).await.map_err(late)??;
        tokio::time::timeout(ACKNOWLEDGED, open.acknowledged()).await.map_err(late)?
    }

    async fn connect(&self, target: &Target) -> io::Result<Connection> {
        let (Target::Tcp { host, port } | Target::Tls { host, port }) = target else {
            return Err(io::Error::other("not a stream"));
        };
        // Names below `localhost` are this machine's (RFC 6761), whether its resolver knows it or not.
        let stream = if host.ends_with(".localhost") {
            TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?
        } else {
            TcpStream::connect((host.as_str(), *port)).await?
        };
        stream.set_nodelay(true)?;
        let descriptor = stream.as_raw_fd();
        if matches!(target, Target::Tcp { .. }) {
            return Ok(Connection { stream: Box::new(stream), descriptor });
        }
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        let secure = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        Ok(Connection { stream: Box::new(secure), descriptor })
    }

    async fn post_all(&self, url: &str, id: &str, buffer: &Buffer) {
        let mut pause = SHORTEST;
        for number in 0_u64.. {
            let batch = buffer.take().await;
            let lost = lost_line(&batch, self.clock.now());
            let (mut body, mut count) = (Vec::new(), 0_usize);
            for line in lost.iter().chain(batch.lines.iter().map(AsRef::as_ref)) {
                let mut message = line.logplex();
                message.push(b'\n');
                body.extend(counted(&message));
                count += 1;
            }
            // The same for every try, so that a receiver can tell a batch that it has.
            let frame = format!("{id}-{}-{number}", self.clock.now().0);
            loop {
                let request = self
                    .http
                    .post(url)
                    .header("content-type", "application/logplex-1")
                    .header("logplex-msg-count", count)
                    .header("logplex-frame-id", &frame)
                    .header("logplex-drain-token", id)
                    .body(body.clone());
                let why = match request.send().await {
                    Ok(answer) if answer.status().is_success() => {
                        buffer.sent(&batch);
                        break;
                    }
                    Ok(answer) if is_final(answer.status().as_u16()) => {
                        buffer.refused(&batch, format!("it answered {}", answer.status()));
                        break;
                    }
                    Ok(answer) => format!("it answered {}", answer.status()),
                    Err(error) => reason(&error.without_url()),
                };
                buffer.failing(why);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
            }
            pause = SHORTEST;
        }
    }
}

/// Answers that another try would not change.
fn is_final(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 401 | 403 | 404 | 408 | 425 | 429)
}

fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// What Heroku writes into a drain that could not keep up.
fn lost_line(batch: &Batch, now: Timestamp) -> Option<Line> {
    let (count, since) = batch.gone?;
    // It is about all apps of the drain; the next line's stands for them.
    let app = batch.lines.first().map(|line| line.app.clone()).or_else(|| "landfall".parse().ok())?;
    let text = format!("Error L10 (output buffer overflow): {count} messages dropped since {since}.");
    Some(Line { at: now, app, origin: Origin::Landfall, process: "logplex".to_owned(), text })
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct Connection {
    stream: Box<dyn Stream>,
    /// The stream's own.
    descriptor: RawFd,
}

impl Connection {
    fn socket(&self) -> BorrowedFd<'_> {
        // The descriptor is open for as long as the stream is here.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }

    /// Whether the receiver has ended its half, after whatever it said.
    async fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match tokio::time::timeout(Duration::from_millis(1), self.stream.read(&mut bytes)).await {
                Ok(Ok(0) | Err(_)) => return true,
                Ok(Ok(_)) => {}
                Err(_) => return false,
            }
        }
    }

    /// Closes it so that nothing of what this machine still has arrives after all: it is sent again.
    fn forget(self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        let _ = setsockopt(&self.socket(), sockopt::Linger, &linger);
    }

    /// Waits until the other machine has everything that was written. One that only reads may have ended its own half.
    async fn acknowledged(&mut self) -> io::Result<()> {
        let mut pause = Duration::from_millis(1);
        while unacknowledged(self.socket())? > 0 {
            match getsockopt(&self.socket(), sockopt::SocketError)? {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
        Ok(())
    }
}

/// Bytes of a TCP socket that were written and not acknowledged yet (tcp(7), SIOCOUTQ, which is TIOCOUTQ on Linux).
fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut count: i32 = 0;
    // Writes one int to a place that is one.
    let result = unsafe { nix::libc::ioctl(socket.as_raw_fd(), nix::libc::TIOCOUTQ, &raw mut count) };
    if result == 0 { Ok(count) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivateKeyDer;
    use std::net::SocketAddr;
    use tokio::net::TcpListener;

    fn line(text: &str) -> Arc<Line> {
        let (app, process) = ("hello".parse().unwrap(), "web.1".to_owned());
        Arc::new(Line { at: Timestamp(0), app, origin: Origin::App, process, text: text.to_owned() })
    }

    fn start(address: &str) -> (Arc<Buffer>, tokio::task::JoinHandle<()>) {
        crate::github::install_crypto_provider();
        let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/src/router/tests/tls/ca.pem");
        let senders = Senders::new(Some(Path::new(authority)), Clock::System).unwrap();
        let buffer = Arc::new(Buffer::default());
        let target = Target::parse(address).unwrap();
        (buffer.clone(), tokio::spawn(senders.run(target, "d.1".to_owned(), buffer)))
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// One message with octet counting.
    async fn message(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut length = String::new();
        loop {
            match stream.read_u8().await.unwrap() {
                b' ' => break,
                digit => length.push(char::from(digit)),
            }
        }
        let mut message = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut message).await.unwrap();
        String::from_utf8(message).unwrap()
    }

    #[tokio::test]
    async fn syslog_goes_over_tcp_and_a_receiver_that_comes_back_misses_nothing() {
        let (listener, address) = listen().await;
        let (buffer, task) = start(&format!("syslog://{address}"));
        buffer.push(line("one"));
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(message(&mut stream).await, "<190>1 1970-01-01T00:00:00.000Z hello app web.1 - - one");
        // It goes away, and there is nobody for a while.
        drop((stream, listener));
        buffer.push(line("two"));
        while buffer.figures().trouble.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        buffer.push(line("three"));
        let listener = TcpListener::bind(address).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        for text in ["two", "three"] {
            assert!(message(&mut stream).await.ends_with(text), "{text}");
        }
        task.abort();
    }

    #[tokio::test]
    async fn what_lay_in_this_machine_s_buffer_is_sent_again_to_a_receiver_that_never_read_it() {
        let (listener, address) = listen().await;
        let (buffer, task) = start(&format!("syslog://{address}"));
        let text = "x".repeat(10_000);
        (0..600).for_each(|number| buffer.push(line(&format!("{number} {text}"))));
        let (silent, _) = listener.accept().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let sent = buffer.figures().sent;
        // What it has acknowledged lies in its own buffer, of which nobody else knows.
        silent.set_zero_linger().unwrap();
        drop(silent);
        let (mut stream, _) = listener.accept().await.unwrap();
        let again = message(&mut stream).await;
        let number = again.split(" - - ").nth(1).and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        assert!(number.is_some_and(|number| number <= sent), "{sent} were taken, and then came {again:.80}");
        assert!(sent < 600, "nothing was left to tell it by");
        task.abort();
    }

    #[tokio::test]
    async fn syslog_over_tls_goes_only_to_whom_a_certificate_names() {
        crate::github::install_crypto_provider();
        let files = concat!(env!("CARGO_MANIFEST_DIR"), "/src/router/tests/tls/");
        let chain = CertificateDer::pem_file_iter(format!("{files}first.pem")).unwrap().collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_file(format!("{files}first.key")).unwrap();
        let config =
            rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain.unwrap(), key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let (listener, address) = listen().await;
        let (buffer, task) = start(&format!("syslog+tls://hello.localhost:{}", address.port()));
        buffer.push(line("secret"));
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        assert!(message(&mut stream).await.ends_with(" - - secret"));
        task.abort();

        let (buffer, task) = start(&format!("syslog+tls://other.localhost:{}", address.port()));
        buffer.push(line("secret"));
        assert!(acceptor.accept(listener.accept().await.unwrap().0).await.is_err(), "it is not who it says");
        while buffer.figures().trouble.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(buffer.figures().sent, 0);
        task.abort();
    }

    /// Answers one request with a status; gives head and body.
    async fn answer(listener: &TcpListener, status: &str) -> (String, String) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let (head, length) = loop {
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece).await.unwrap();
            bytes.extend_from_slice(&piece[..count]);
            let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
            if let Some((head, _)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                break (head.to_owned(), length.parse::<usize>().unwrap());
            }
        };
        let begin = head.len() + 4;
        while bytes.len() < begin + length {
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece).await.unwrap();
            bytes.extend_from_slice(&piece[..count]);
        }
        let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(reply.as_bytes()).await.unwrap();
        (head, String::from_utf8(bytes[begin..].to_vec()).unwrap())
    }

    #[tokio::test]
    async fn https_drains_get_herokus_form_and_a_batch_again_until_it_is_taken() {
        let (listener, address) = listen().await;
        let (buffer, task) = start(&format!("http://key:secret@{address}/in"));
        buffer.lost(7, Timestamp(0));
        buffer.push(line("one"));
        // What was lost may be told in a batch of its own.
        let (head, body) = answer(&listener, "503 Busy").await;
        let (again, same) = answer(&listener, "204 Taken").await;
        assert_eq!(body, same);
        let frame = |head: &str| head.lines().find(|line| line.starts_with("logplex-frame-id")).map(str::to_owned);
        assert_eq!(frame(&head), frame(&again));
        for expected in ["post /in http/1.1", "content-type: application/logplex-1", "logplex-drain-token: d.1"] {
            assert!(head.contains(expected), "{expected} is not in {head}");
        }
        assert!(head.contains("authorization: basic"), "{head}");
        assert!(body.contains("Error L10 (output buffer overflow): 7 messages dropped since 1970"), "{body}");
        let body = if body.contains("one") { body } else { answer(&listener, "200 OK").await.1 };
        let last = "<190>1 1970-01-01T00:00:00.000Z hello app web.1 - one\n";
        assert!(body.ends_with(&format!("{} {last}", last.len())), "{body}");

        // What it will never take is not tried for ever.
        while buffer.figures().sent < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        buffer.push(line("two"));
        answer(&listener, "413 Too Large").await;
        let (_, next) = answer(&listener, "200 OK").await;
        assert!(next.contains("1 messages dropped") && !next.contains("two"), "{next}");
        assert_eq!(buffer.figures().dropped, 8);
        task.abort();
    }
}
