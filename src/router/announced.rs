//! The PROXY protocol: a load balancer that passes bytes on says first whose they are.
//!
//! Read only from addresses that the operator trusts, and then it must be there: whoever could leave it out could say
//! that they are the load balancer. Both the text form (1) and the binary form (2) are understood.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of form 1, with its end.
const LONGEST_LINE: usize = 107;
/// More than any load balancer adds to form 2.
const LONGEST: usize = 4096;

/// What the bytes so far come to.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// The header's length, and the client that it names; `None` where the balancer speaks for itself.
    Whole(usize, Option<SocketAddr>),
    More,
    Wrong,
}

/// Takes the header off a connection: the client's address, `None` where the balancer speaks for itself (its own
/// checks).
pub(super) async fn read(stream: &mut TcpStream, limit: Duration) -> io::Result<Option<SocketAddr>> {
    tokio::time::timeout(limit, take(stream)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn take(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut header = Vec::new();
    // One byte at a time once it cannot be known how many belong to the header; else as many as surely do.
    loop {
        match parse(&header) {
            Parsed::Whole(length, client) if length == header.len() => return Ok(client),
            Parsed::Whole(..) | Parsed::Wrong => return Err(io::Error::from(io::ErrorKind::InvalidData)),
            Parsed::More => {
                let surely = surely_left(&header);
                let start = header.len();
                header.resize(start + surely, 0);
                stream.read_exact(&mut header[start..]).await?;
            }
        }
    }
}

/// How many more bytes belong to the header whatever they are.
fn surely_left(header: &[u8]) -> usize {
    let binary = header.first().is_none_or(|byte| *byte == SIGNATURE[0]);
    match header.len() {
        0 => 1,
        have @ 1..16 if binary => 16 - have,
        have if binary => 16 + usize::from(u16::from_be_bytes([header[14], header[15]])) - have,
        // `PROXY UNKNOWN\r\n` is the shortest.
        have @ 1..13 => 13 - have,
        _ => 1,
    }
}

fn parse(header: &[u8]) -> Parsed {
    if header.is_empty() {
        return Parsed::More;
    }
    if header[0] == SIGNATURE[0] { parse_binary(header) } else { parse_line(header) }
}

fn parse_line(header: &[u8]) -> Parsed {
    const START: &[u8] = b"PROXY ";
    let known = header.len().min(START.len());
    if header[..known] != START[..known] {
        return Parsed::Wrong;
    }
    let Some(end) = header.windows(2).position(|pair| pair == b"\r\n") else {
        return if header.len() < LONGEST_LINE { Parsed::More } else { Parsed::Wrong };
    };
    let Ok(line) = std::str::from_utf8(&header[START.len()..end]) else { return Parsed::Wrong };
    let words: Vec<&str> = line.split(' ').collect();
    let client = match words.as_slice() {
        ["UNKNOWN", ..] => None,
        [family @ ("TCP4" | "TCP6"), from, to, from_port, to_port] => {
            let (Ok(from), Ok(to)) = (from.parse::<IpAddr>(), to.parse::<IpAddr>()) else { return Parsed::Wrong };
            let (Ok(port), Ok(_)) = (from_port.parse::<u16>(), to_port.parse::<u16>()) else { return Parsed::Wrong };
            if from.is_ipv4() != (*family == "TCP4") || to.is_ipv4() != from.is_ipv4() {
                return Parsed::Wrong;
            }
            Some(SocketAddr::new(from, port))
        }
        _ => return Parsed::Wrong,
    };
    Parsed::Whole(end + 2, client)
}

fn parse_binary(header: &[u8]) -> Parsed {
    let known = header.len().min(SIGNATURE.len());
    if header[..known] != SIGNATURE[..known] {
        return Parsed::Wrong;
    }
    if header.len() < 16 {
        return Parsed::More;
    }
    let length = 16 + usize::from(u16::from_be_bytes([header[14], header[15]]));
    if header[12] >> 4 != 2 || length > LONGEST {
        return Parsed::Wrong;
    }
    if header.len() < length {
        return Parsed::More;
    }
    let body = &header[16..length];
    match (header[12] & 0xf, header[13]) {
        (0, _) => Parsed::Whole(length, None),
        (1, 0x11) if body.len() >= 12 => {
            let address = Ipv4Addr::new(body[0], body[1], body[2], body[3]);
            let port = u16::from_be_bytes([body[8], body[9]]);
            Parsed::Whole(length, Some(SocketAddr::new(address.into(), port)))
        }
        (1, 0x21) if body.len() >= 36 => {
            let mut address = [0; 16];
            address.copy_from_slice(&body[..16]);
            let port = u16::from_be_bytes([body[32], body[33]]);
            Parsed::Whole(length, Some(SocketAddr::new(Ipv6Addr::from(address).into(), port)))
        }
        // Families that are none of ours, as the protocol wants: taken as said by the balancer itself.
        (1, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Parsed::Whole(length, None),
        _ => Parsed::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        header.extend(body);
        header
    }

    #[test]
    fn both_forms_are_read_byte_by_byte_and_no_further() {
        let six = "[2001:db8::1]:4711".parse().unwrap();
        let mut body = [0_u8; 36];
        body[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        body[32..34].copy_from_slice(&4711_u16.to_be_bytes());
        let four = Some("192.0.2.7:56324".parse().unwrap());
        for (header, client) in [
            (b"PROXY TCP4 192.0.2.7 203.0.113.1 56324 443\r\n".to_vec(), four),
            (b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n".to_vec(), Some(six)),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (binary(1, 0x11, &[192, 0, 2, 7, 203, 0, 113, 1, 220, 4, 1, 187]), four),
            (binary(1, 0x11, &[192, 0, 2, 7, 203, 0, 113, 1, 220, 4, 1, 187, 4, 0, 1, 9]), four),
            (binary(1, 0x21, &body), Some(six)),
            (binary(0, 0, &[]), None),
        ] {
            let mut have = 0;
            while parse(&header[..have]) == Parsed::More {
                let step = surely_left(&header[..have]);
                assert!(step > 0 && have + step <= header.len(), "reads past the header {header:?}");
                have += step;
            }
            assert_eq!(parse(&header[..have]), Parsed::Whole(header.len(), client), "{header:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 203.0.113.1 56324\r\n".to_vec(),
            b"PROXY TCP4 ::1 203.0.113.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 203.0.113.1 70000 2\r\n".to_vec(),
            b"PROXY TCP5 192.0.2.7 203.0.113.1 1 2\r\n".to_vec(),
            b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\x0c".to_vec(),
            binary(1, 0x11, &[1, 2, 3]),
            binary(2, 0x11, &[0; 12]),
            long.into_bytes(),
        ] {
            assert_eq!(parse(&bytes), Parsed::Wrong, "{bytes:?}");
        }
    }
}
