//! Where a request really came from, when a proxy stands in front: its word counts only if the operator named it.
//!
//! Everybody else may write into such headers what they like, and it is dropped.

use super::request::canonical;
use http::HeaderMap;
use std::net::IpAddr;

/// The addresses whose forwarding headers are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted(Vec<(IpAddr, u8)>);

impl Trusted {
    /// Reads addresses and networks: `127.0.0.1`, `10.0.0.0/8`, `fd00::/8`.
    pub fn parse(list: &[String]) -> Result<Trusted, String> {
        let one = |text: &String| {
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address, Some(bits)),
                None => (text.as_str(), None),
            };
            let wrong = || format!("{text:?} is no address and no network such as 10.0.0.0/8");
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Ok(most), str::parse::<u8>);
            bits.ok().filter(|bits| *bits <= most).map(|bits| (address, bits)).ok_or_else(wrong)
        };
        list.iter().map(one).collect::<Result<_, _>>().map(Trusted)
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|(network, bits)| match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(*bits)).unwrap_or(0);
                u32::from(*network) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(*bits)).unwrap_or(0);
                u128::from(*network) & mask == u128::from(address) & mask
            }
            _ => false,
        })
    }
}

/// How the client reached us, or the proxy in front of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub client: IpAddr,
    pub secure: bool,
    pub port: u16,
}

/// `own` is what we see by ourselves: the other end of the connection, whether it has TLS, and our port.
pub(super) fn origin(headers: &HeaderMap, own: Origin, trusted: &Trusted) -> Origin {
    let peer = canonical(own.client);
    let mut origin = Origin { client: peer, ..own };
    if !trusted.contains(peer) {
        return origin;
    }
    let last = |name: &str| {
        let value = headers.get_all(name).iter().next_back()?.to_str().ok()?;
        value.rsplit(',').next().map(str::trim)
    };
    // The nearest proxy wrote the last one. Whoever is not trusted could have written all that stands before it.
    let lines = headers.get_all("x-forwarded-for").iter().rev().filter_map(|value| value.to_str().ok());
    for address in lines.flat_map(|line| line.rsplit(',')) {
        let Ok(address) = address.trim().parse::<IpAddr>() else { break };
        origin.client = canonical(address);
        if !trusted.contains(origin.client) {
            break;
        }
    }
    if let Some(scheme) = last("x-forwarded-proto") {
        origin.secure = scheme.eq_ignore_ascii_case("https");
        let usual = if origin.secure { 443 } else { 80 };
        origin.port = last("x-forwarded-port").and_then(|text| text.parse().ok()).unwrap_or(usual);
    }
    origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn networks_hold_their_addresses_and_no_others() {
        let trusted = Trusted::parse(&list(&["127.0.0.1", "10.1.0.0/16", "fd00::/8", "192.0.2.128/25"])).unwrap();
        for (address, inside) in [
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("fdff::1", true),
            ("fe00::1", false),
            ("192.0.2.127", false),
            ("192.0.2.129", true),
            ("::1", false),
        ] {
            assert_eq!(trusted.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(Trusted::parse(&list(&["0.0.0.0/0"])).unwrap().contains("8.8.8.8".parse().unwrap()));
        for wrong in ["", "localhost", "10.0.0.0/33", "10.0.0.0/x", "::/129", "10.0.0.0/"] {
            assert!(Trusted::parse(&list(&[wrong])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let trusted = Trusted::parse(&list(&["10.0.0.0/8"])).unwrap();
        let ask = |peer: &str, headers: &[(&'static str, &str)]| {
            let mut all = HeaderMap::new();
            for (name, value) in headers {
                all.append(*name, value.parse().unwrap());
            }
            let own = Origin { client: peer.parse().unwrap(), secure: false, port: 8000 };
            let origin = origin(&all, own, &trusted);
            (origin.client.to_string(), origin.secure, origin.port)
        };
        let all = [("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-forwarded-proto", "https")];
        assert_eq!(ask("203.0.113.1", &all), ("203.0.113.1".to_owned(), false, 8000));
        assert_eq!(ask("10.0.0.1", &all), ("203.0.113.9".to_owned(), true, 443));
        assert_eq!(ask("::ffff:10.0.0.1", &all).0, "203.0.113.9");
        let two = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "203.0.113.9, 10.0.0.2")];
        assert_eq!(ask("10.0.0.1", &two), ("203.0.113.9".to_owned(), false, 8000));
        let odd = [("x-forwarded-for", "6.6.6.6, <script>"), ("x-forwarded-proto", "https, http")];
        assert_eq!(ask("10.0.0.1", &odd), ("10.0.0.1".to_owned(), false, 80));
        let port = [("x-forwarded-proto", "https"), ("x-forwarded-port", "8443")];
        assert_eq!(ask("10.0.0.1", &port), ("10.0.0.1".to_owned(), true, 8443));
    }
}
