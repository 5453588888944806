//! From when until when a certificate holds: the two times of its DER (RFC 5280, 4.1.2.5), and no more of it.

use crate::clock::Timestamp;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Validity {
    pub fn of(certificate: &[u8]) -> Option<Validity> {
        let (whole, _) = element(certificate, 0x30)?;
        let (mut body, _) = element(whole, 0x30)?;
        if body.first() == Some(&0xa0) {
            body = element(body, 0xa0)?.1;
        }
        // The serial number, the algorithm, and the issuer.
        for tag in [0x02, 0x30, 0x30] {
            body = element(body, tag)?.1;
        }
        let (times, _) = element(body, 0x30)?;
        let (from, rest) = time(times)?;
        let (until, _) = time(rest)?;
        Some(Validity { from, until })
    }

    /// When a third of its time is left, and not at the same moment for all that were made together.
    pub fn renew_at(&self, domain: &str) -> Timestamp {
        let lifetime = self.until.since(self.from);
        let spread = domain.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 100;
        let early = lifetime / 3 + lifetime / 3000 * spread;
        let early = i64::try_from(early.as_millis()).unwrap_or(i64::MAX);
        Timestamp(self.until.0.saturating_sub(early)).max(self.from + Duration::from_secs(1))
    }
}

/// The content of the first element, which must have this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn time(bytes: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (digits, rest) = element(bytes, 0x17).or_else(|| element(bytes, 0x18))?;
    let text = std::str::from_utf8(digits).ok()?.strip_suffix('Z')?;
    let whole = match text.len() {
        // Two digits of the year: 50 and more are of the last century.
        12 => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        14 => text.to_owned(),
        _ => return None,
    };
    let part = |from: usize, to: usize| whole.get(from..to);
    let written = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?
    );
    Some((Timestamp::parse_rfc3339(&written)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_certificate_are_read_and_a_third_of_it_is_left_for_renewal() {
        let mut params = rcgen::CertificateParams::new(vec!["www.example.com".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap();
        let validity = Validity::of(der.der()).unwrap();
        assert_eq!(validity.from.rfc3339(), "2026-01-01T00:00:00Z");
        assert_eq!(validity.until.rfc3339(), "2026-04-01T00:00:00Z");
        let left = validity.until.since(validity.renew_at("www.example.com"));
        assert!((30..=34).contains(&(left.as_secs() / 86_400)), "{left:?}");
        assert_ne!(validity.renew_at("a.example.com"), validity.renew_at("b.example.com"));
        // After 2049 years have four digits.
        params.not_after = rcgen::date_time_ymd(2051, 4, 1);
        let der = params.self_signed(&key).unwrap();
        assert_eq!(Validity::of(der.der()).unwrap().until.rfc3339(), "2051-04-01T00:00:00Z");
        for end in 0..der.der().len().min(120) {
            let _ = Validity::of(&der.der()[..end]);
        }
        assert_eq!(Validity::of(b"\x30\x84\xff\xff\xff\xff"), None);
    }
}
