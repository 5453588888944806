//! A certificate authority that speaks ACME (RFC 8555) and believes nothing: nonces count once, signatures are checked
//! over the bytes that came, and a domain is whoever's answers its challenge through the router. It holds the order back
//! where a test wants it to.

use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub struct Authority {
    pub address: SocketAddr,
    pub state: Arc<State>,
    server: actix_web::dev::ServerHandle,
}

pub struct State {
    address: Mutex<String>,
    /// Where each domain leads to.
    router: SocketAddr,
    /// Certificates are not made while this is set; orders stay in processing.
    pub holding: AtomicBool,
    /// Every new order is refused for having been asked too often.
    pub limiting: AtomicBool,
    /// How long a certificate holds, in days.
    pub days: AtomicUsize,
    pub accounts_made: AtomicUsize,
    pub orders_made: AtomicUsize,
    pub challenges_checked: AtomicUsize,
    pub certificates_made: AtomicUsize,
    pub refused: Mutex<Vec<String>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    number: usize,
    nonces: BTreeSet<String>,
    /// By address: the key's thumbprint and the key.
    accounts: BTreeMap<String, (String, Vec<u8>)>,
    orders: Vec<Order>,
}

struct Order {
    account: String,
    domain: String,
    token: String,
    status: &'static str,
    request: Option<Vec<u8>>,
    chain: Option<String>,
}

type Refused = (u16, &'static str, String);

impl Authority {
    pub fn start(router: SocketAddr) -> Authority {
        let state = Arc::new(State {
            address: Mutex::default(),
            router,
            holding: AtomicBool::new(false),
            limiting: AtomicBool::new(false),
            days: AtomicUsize::new(90),
            accounts_made: AtomicUsize::new(0),
            orders_made: AtomicUsize::new(0),
            challenges_checked: AtomicUsize::new(0),
            certificates_made: AtomicUsize::new(0),
            refused: Mutex::default(),
            inner: Mutex::default(),
        });
        let shared = Data::from(state.clone());
        let server = HttpServer::new(move || {
            App::new()
                .app_data(shared.clone())
                .route("/directory", web::get().to(directory))
                .route("/nonce", web::head().to(nonce))
                .default_service(web::post().to(post))
        })
        .workers(1)
        .disable_signals()
        .bind("127.0.0.1:0")
        .expect("a port is free");
        let address = server.addrs()[0];
        *state.address.lock().expect("no holder panics") = format!("http://{address}");
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        Authority { address, state, server: handle }
    }

    pub fn directory(&self) -> String {
        format!("http://{}/directory", self.address)
    }

    pub async fn stop(self) {
        self.server.stop(false).await;
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address.lock().expect("no holder panics"))
    }

    /// Orders whose certificate is asked for and not made.
    pub fn in_processing(&self) -> usize {
        self.lock().orders.iter().filter(|order| order.status == "processing").count()
    }

    fn fresh_nonce(&self) -> String {
        let mut inner = self.lock();
        inner.number += 1;
        let nonce = BASE64.encode(format!("nonce {}", inner.number));
        inner.nonces.insert(nonce.clone());
        nonce
    }
}

async fn directory(state: Data<State>) -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "newNonce": state.url("/nonce"), "newAccount": state.url("/account"), "newOrder": state.url("/order"),
        "revokeCert": state.url("/revoke"), "keyChange": state.url("/key"),
    }))
}

async fn nonce(state: Data<State>) -> HttpResponse {
    HttpResponse::Ok().insert_header(("Replay-Nonce", state.fresh_nonce())).finish()
}

async fn post(request: HttpRequest, state: Data<State>, bytes: Bytes) -> HttpResponse {
    let outcome = answer(&request, &state, &bytes).await;
    let nonce = state.fresh_nonce();
    match outcome {
        Ok((status, location, body)) => {
            let mut response = HttpResponse::build(actix_web::http::StatusCode::from_u16(status).expect("a status"));
            response.insert_header(("Replay-Nonce", nonce));
            if let Some(location) = location {
                response.insert_header(("Location", location));
            }
            match body {
                Value::String(text) => response.content_type("application/pem-certificate-chain").body(text),
                value => response.json(value),
            }
        }
        Err((status, kind, detail)) => {
            state.refused.lock().expect("no holder panics").push(format!("{kind}: {detail}"));
            HttpResponse::build(actix_web::http::StatusCode::from_u16(status).expect("a status"))
                .insert_header(("Replay-Nonce", nonce))
                .content_type("application/problem+json")
                .body(json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail }).to_string())
        }
    }
}

/// Who signed, and what: the account's address (empty for a new one), its key and thumbprint, and the payload.
struct Signed {
    account: String,
    key: Vec<u8>,
    thumbprint: String,
    payload: Vec<u8>,
}

fn check(request: &HttpRequest, state: &State, bytes: &[u8]) -> Result<Signed, Refused> {
    let malformed = |detail: &str| (400, "malformed", detail.to_owned());
    let jose = request.headers().get("content-type").is_some_and(|kind| kind == "application/jose+json");
    if !jose {
        return Err(malformed("not application/jose+json"));
    }
    let body: Value = serde_json::from_slice(bytes).map_err(|_| malformed("no JSON"))?;
    let part = |name: &str| body[name].as_str().ok_or_else(|| malformed(name));
    let (protected, payload, signature) = (part("protected")?, part("payload")?, part("signature")?);
    let decode = |text: &str| BASE64.decode(text).map_err(|_| malformed("no base64url"));
    let header: Value = serde_json::from_slice(&decode(protected)?).map_err(|_| malformed("protected"))?;
    let nonce = header["nonce"].as_str().unwrap_or_default();
    if !state.lock().nonces.remove(nonce) {
        return Err((400, "badNonce", format!("{nonce:?} was not given out, or was used")));
    }
    if header["url"] != state.url(request.path()) {
        return Err((401, "unauthorized", format!("signed for {}", header["url"])));
    }
    if header["alg"] != "ES256" {
        return Err((400, "badSignatureAlgorithm", header["alg"].to_string()));
    }
    let (account, thumbprint, key) = match (&header["jwk"], header["kid"].as_str()) {
        (jwk, None) if jwk.is_object() => {
            let coordinate = |name: &str| jwk[name].as_str().ok_or_else(|| malformed("jwk"));
            let (x, y) = (coordinate("x")?, coordinate("y")?);
            // RFC 7638: the members in this order, without spaces.
            let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
            let thumbprint = BASE64.encode(ring::digest::digest(&ring::digest::SHA256, canonical.as_bytes()));
            let key = [vec![4], decode(x)?, decode(y)?].concat();
            (String::new(), thumbprint, key)
        }
        (Value::Null, Some(kid)) => {
            let known = state.lock().accounts.get(kid).cloned();
            let (thumbprint, key) = known.ok_or((400, "accountDoesNotExist", kid.to_owned()))?;
            (kid.to_owned(), thumbprint, key)
        }
        _ => return Err(malformed("either jwk or kid")),
    };
    if account.is_empty() != (request.path() == "/account") {
        return Err(malformed("a key where an account belongs, or the other way round"));
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key)
        .verify(format!("{protected}.{payload}").as_bytes(), &decode(signature)?)
        .map_err(|_| (401, "unauthorized", "the signature is wrong".to_owned()))?;
    Ok(Signed { account, key, thumbprint, payload: decode(payload)? })
}

type Answered = Result<(u16, Option<String>, Value), Refused>;

async fn answer(request: &HttpRequest, state: &Data<State>, bytes: &[u8]) -> Answered {
    let signed = check(request, state, bytes)?;
    let payload: Value = serde_json::from_slice(&signed.payload).unwrap_or(Value::Null);
    let parts: Vec<&str> = request.path().trim_start_matches('/').split('/').collect();
    let index = |text: &str| text.parse::<usize>().map_err(|_| (404, "malformed", "no number".to_owned()));
    match parts.as_slice() {
        ["account"] => {
            if payload["termsOfServiceAgreed"] != true {
                return Err((403, "userActionRequired", "the terms".to_owned()));
            }
            let number = state.accounts_made.fetch_add(1, Ordering::SeqCst);
            let url = state.url(&format!("/accounts/{number}"));
            state.lock().accounts.insert(url.clone(), (signed.thumbprint, signed.key));
            Ok((201, Some(url), json!({ "status": "valid", "contact": payload["contact"] })))
        }
        ["order"] => {
            if state.limiting.load(Ordering::SeqCst) {
                return Err((429, "rateLimited", "too many certificates already issued".to_owned()));
            }
            let identifiers = payload["identifiers"].as_array().cloned().unwrap_or_default();
            let [identifier] = identifiers.as_slice() else {
                return Err((400, "malformed", "one domain for each order".to_owned()));
            };
            let domain = identifier["value"].as_str().unwrap_or_default().to_owned();
            state.orders_made.fetch_add(1, Ordering::SeqCst);
            let number = {
                let mut inner = state.lock();
                let token = BASE64.encode(format!("token {}", inner.orders.len()));
                let (account, status) = (signed.account, "pending");
                inner.orders.push(Order { account, domain, token, status, request: None, chain: None });
                inner.orders.len() - 1
            };
            Ok((201, Some(state.url(&format!("/order/{number}"))), show(state, number)?))
        }
        ["order", number] => {
            let number = index(number)?;
            own(state, number, &signed.account)?;
            make(state, number)?;
            Ok((200, None, show(state, number)?))
        }
        ["authorization", number] => {
            let number = index(number)?;
            own(state, number, &signed.account)?;
            let inner = state.lock();
            let order = &inner.orders[number];
            let status = if order.status == "pending" { "pending" } else { "valid" };
            let challenge = state.url(&format!("/challenge/{number}"));
            Ok((
                200,
                None,
                json!({
                    "identifier": { "type": "dns", "value": order.domain }, "status": status, "expires": "2100-01-01T00:00:00Z",
                    "challenges": [{ "type": "http-01", "url": challenge, "token": order.token, "status": status }],
                }),
            ))
        }
        ["challenge", number] => {
            let number = index(number)?;
            own(state, number, &signed.account)?;
            let (domain, token) = {
                let inner = state.lock();
                (inner.orders[number].domain.clone(), inner.orders[number].token.clone())
            };
            let expected = format!("{token}.{}", signed.thumbprint);
            let got = look(state.router, &domain, &token).await;
            state.challenges_checked.fetch_add(1, Ordering::SeqCst);
            let valid = got.as_deref() == Ok(expected.as_str());
            state.lock().orders[number].status = if valid { "ready" } else { "invalid" };
            if !valid {
                state.refused.lock().expect("no holder panics").push(format!("http-01 of {domain}: {got:?}"));
            }
            let url = state.url(&format!("/challenge/{number}"));
            let status = if valid { "valid" } else { "invalid" };
            Ok((200, None, json!({ "type": "http-01", "url": url, "token": token, "status": status })))
        }
        ["finalize", number] => {
            let number = index(number)?;
            own(state, number, &signed.account)?;
            let request = payload["csr"].as_str().and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
            {
                let mut inner = state.lock();
                let order = &mut inner.orders[number];
                if order.status != "ready" {
                    return Err((403, "orderNotReady", order.status.to_owned()));
                }
                order.status = "processing";
                order.request = Some(request);
            }
            make(state, number)?;
            Ok((200, None, show(state, number)?))
        }
        ["certificate", number] => {
            let number = index(number)?;
            own(state, number, &signed.account)?;
            let chain = state.lock().orders[number].chain.clone();
            chain.map(|chain| (200, None, Value::String(chain))).ok_or((404, "malformed", "none yet".to_owned()))
        }
        _ => Err((404, "malformed", request.path().to_owned())),
    }
}

fn own(state: &State, number: usize, account: &str) -> Result<(), Refused> {
    match state.lock().orders.get(number) {
        Some(order) if order.account == account => Ok(()),
        _ => Err((403, "unauthorized", "another account's".to_owned())),
    }
}

fn show(state: &State, number: usize) -> Result<Value, Refused> {
    let inner = state.lock();
    let order = inner.orders.get(number).ok_or((404, "malformed", "no order".to_owned()))?;
    let mut shown = json!({
        "status": order.status, "identifiers": [{ "type": "dns", "value": order.domain }],
        "authorizations": [state.url(&format!("/authorization/{number}"))],
        "finalize": state.url(&format!("/finalize/{number}")),
    });
    if order.chain.is_some() {
        shown["certificate"] = json!(state.url(&format!("/certificate/{number}")));
    }
    Ok(shown)
}

/// Signs what was asked for, unless a test wants it held back.
fn make(state: &State, number: usize) -> Result<(), Refused> {
    let mut inner = state.lock();
    let order = &mut inner.orders[number];
    let Some(request) = order.request.as_ref().filter(|_| order.status == "processing") else { return Ok(()) };
    if state.holding.load(Ordering::SeqCst) {
        return Ok(());
    }
    let bad = |detail: String| (400, "badCSR", detail);
    let der = rustls::pki_types::CertificateSigningRequestDer::from(request.clone());
    let mut asked = rcgen::CertificateSigningRequestParams::from_der(&der).map_err(|error| bad(error.to_string()))?;
    let names: Vec<String> = asked
        .params
        .subject_alt_names
        .iter()
        .map(|name| match name {
            rcgen::SanType::DnsName(name) => name.to_string(),
            other => format!("{other:?}"),
        })
        .collect();
    if names != [order.domain.clone()] {
        return Err(bad(format!("{names:?} is not what was ordered")));
    }
    let now = std::time::SystemTime::now();
    let days = u32::try_from(state.days.load(Ordering::SeqCst)).expect("days");
    asked.params.not_before = now.into();
    asked.params.not_after = (now + Duration::from_secs(86_400) * days).into();
    let key = rcgen::KeyPair::generate().expect("a key");
    let issuer_params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    let issuer = rcgen::Issuer::new(issuer_params, key);
    order.chain = Some(asked.signed_by(&issuer).map_err(|error| bad(error.to_string()))?.pem());
    order.status = "valid";
    state.certificates_made.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// What a visitor of the domain gets at the challenge's address, at port 80 so to speak.
async fn look(router: SocketAddr, domain: &str, token: &str) -> Result<String, String> {
    let address = format!("http://{router}/.well-known/acme-challenge/{token}");
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.to_string())?;
    let answer = client.get(address).header("host", domain).send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    if status == 200 { Ok(text) } else { Err(format!("{status}: {text}")) }
}
