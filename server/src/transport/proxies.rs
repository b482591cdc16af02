//! Whose word about a client's address is taken: proxies that the operator names, and nobody else.
//! The address is for logs and limits; it never lets anybody in.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use bytes::BytesMut;
use http::HeaderMap;
use ppp::{HeaderResult, PartialResult as _, v1, v2};
use tokio::io::AsyncReadExt as _;

use super::RawStream;

/// A PROXY header of version 1 is a line; in version 2 extensions may follow the addresses.
const MAX_LINE_BYTES: usize = 107;
const MAX_HEADER_BYTES: usize = 4096;
/// Hops of a forwarding chain that are looked at.
const MAX_HOPS: usize = 32;

/// Addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    num_bits: u32,
}

impl Network {
    /// Whether `address` is in it. An IPv4 address written as IPv6 is an IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shared = |base: u128, address: u128, width: u32| {
            let differing = (base ^ address) << (128 - width);
            self.num_bits == 0 || differing >> (128 - self.num_bits) == 0
        };
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                shared(base.to_bits().into(), address.to_bits().into(), 32)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                shared(base.to_bits(), address.to_bits(), 128)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base, Some(bits)),
            None => (text, None),
        };
        let base: IpAddr = base
            .parse()
            .map_err(|_| format!("{text} is neither an address nor ADDRESS/BITS"))?;
        let width = if base.is_ipv4() { 32 } else { 128 };
        let num_bits = match bits {
            None => width,
            Some(bits) => match bits.parse() {
                Ok(bits) if bits <= width => bits,
                _ => return Err(format!("{text}: a network has 0 to {width} bits")),
            },
        };
        Ok(Self { base, num_bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.num_bits)
    }
}

/// Peers that speak for others.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Where they are.
    pub networks: Vec<Network>,
    /// Whether peers on unix sockets are some.
    pub unix: bool,
    /// Whether each of their connections begins with a PROXY header.
    pub send_header: bool,
}

impl Proxies {
    /// Whether this peer's word is taken; `None` is the peer of a unix socket.
    pub(crate) fn trusts(&self, peer: Option<IpAddr>) -> bool {
        match peer {
            Some(peer) => self.networks.iter().any(|network| network.contains(peer)),
            None => self.unix,
        }
    }

    /// Who sent a request that came from `peer`: the last hop that no trusted proxy is. Of
    /// `X-Forwarded-For` and `Forwarded` the first is read, the second only if it is alone.
    pub(crate) fn client(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        let hops = [("x-forwarded-for", false), ("forwarded", true)]
            .into_iter()
            .find(|(name, _)| headers.contains_key(*name));
        let Some((name, is_standard)) = hops else {
            return client;
        };
        let lines: Vec<&str> = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
        for hop in hops.take(MAX_HOPS) {
            let hop = if is_standard { for_of(hop) } else { Some(hop) };
            // What cannot be read ends the chain: beyond it nothing is vouched for.
            let Some(address) = hop.and_then(address_of) else {
                break;
            };
            client = Some(address);
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

/// The `for` of one element of `Forwarded`.
fn for_of(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("for").then_some(value)
    })
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address_of(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    if let Some(rest) = hop.strip_prefix('[') {
        let (address, _port) = rest.split_once(']')?;
        return address.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    if let Ok(address) = hop.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, _port) = hop.split_once(':')?;
    address.parse().ok().map(IpAddr::V4)
}

/// Takes the PROXY header off the front of a connection. `None`: it says that the proxy speaks for
/// itself.
pub(crate) async fn read_header(stream: &mut RawStream) -> io::Result<Option<IpAddr>> {
    let mut bytes = BytesMut::with_capacity(256);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A line is parsed whole: its parser takes some of its beginnings for mistakes.
        let is_line = bytes[0] == v1::PROTOCOL_PREFIX.as_bytes()[0];
        let has_end = bytes.windows(2).any(|pair| pair == b"\r\n");
        if is_line && !has_end && bytes.len() < MAX_LINE_BYTES {
            continue;
        }
        let header = HeaderResult::parse(&bytes);
        if header.is_incomplete() && bytes.len() < MAX_HEADER_BYTES {
            continue;
        }
        let malformed = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let (len, client) = match header {
            HeaderResult::V1(Ok(header)) => {
                let client = match header.addresses {
                    v1::Addresses::Tcp4(pair) => Some(pair.source_address.into()),
                    v1::Addresses::Tcp6(pair) => Some(pair.source_address.into()),
                    v1::Addresses::Unknown => None,
                };
                (header.header.len(), client)
            }
            HeaderResult::V2(Ok(header)) => {
                let client = match (header.command, header.addresses) {
                    (v2::Command::Proxy, v2::Addresses::IPv4(pair)) => {
                        Some(pair.source_address.into())
                    }
                    (v2::Command::Proxy, v2::Addresses::IPv6(pair)) => {
                        Some(pair.source_address.into())
                    }
                    _ => None,
                };
                (header.len(), client)
            }
            HeaderResult::V1(Err(error)) => return Err(malformed(error.to_string())),
            HeaderResult::V2(Err(error)) => return Err(malformed(error.to_string())),
        };
        stream.put_back(bytes.split_off(len).freeze());
        return Ok(client.map(|client: IpAddr| client.to_canonical()));
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn proxies(networks: &[&str]) -> Proxies {
        let networks = networks.iter().map(|text| text.parse().expect("a network"));
        Proxies {
            networks: networks.collect(),
            ..Proxies::default()
        }
    }

    #[test]
    fn networks_contain_what_shares_their_bits() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.1.2", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("192.168.1.128/25", "192.168.1.200", "192.168.1.100"),
            ("2001:db8::/32", "2001:db8:1::9", "2001:db9::1"),
            ("::1", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.1.1.1", "::10.1.1.1"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("::/0", "2001:db8::1", "203.0.113.9"),
        ] {
            let parsed: Network = network.parse().expect(network);
            assert!(parsed.contains(ip(inside)), "{inside} in {network}");
            assert!(!parsed.contains(ip(outside)), "{outside} in {network}");
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "host"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_named_proxies_speak_for_others() {
        let trusted = proxies(&["10.0.0.0/8", "::1"]);
        let headers = |lines: &[(&'static str, &'static str)]| {
            let lines = lines.iter();
            let lines = lines.map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            });
            let mut map = HeaderMap::new();
            for (name, value) in lines {
                map.append(name, value);
            }
            map
        };
        let forwarded = "x-forwarded-for";
        for (peer, lines, client) in [
            // A stranger says what it likes.
            ("203.0.113.9", vec![(forwarded, "10.0.0.1")], "203.0.113.9"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            (
                "10.0.0.1",
                vec![(forwarded, "198.51.100.7")],
                "198.51.100.7",
            ),
            // What a client wrote itself stands before what the proxies added.
            (
                "10.0.0.1",
                vec![(forwarded, "1.2.3.4, 198.51.100.7, 10.9.9.9")],
                "198.51.100.7",
            ),
            (
                "10.0.0.1",
                vec![(forwarded, "1.2.3.4"), (forwarded, "198.51.100.7:5123")],
                "198.51.100.7",
            ),
            (
                "10.0.0.1",
                vec![(forwarded, "198.51.100.7, junk")],
                "10.0.0.1",
            ),
            ("10.0.0.1", vec![(forwarded, "10.0.0.2")], "10.0.0.2"),
            (
                "::1",
                vec![(
                    "forwarded",
                    "for=1.2.3.4, For=\"[2001:db8::17]:4711\";proto=https",
                )],
                "2001:db8::17",
            ),
            (
                "::1",
                vec![("forwarded", "for=1.2.3.4"), (forwarded, "198.51.100.7")],
                "198.51.100.7",
            ),
            ("::1", vec![("forwarded", "for=unknown")], "::1"),
        ] {
            let found = trusted.client(Some(ip(peer)), &headers(&lines));
            assert_eq!(found, Some(ip(client)), "{peer}: {lines:?}");
        }
        let nobody = Proxies::default();
        assert_eq!(
            nobody.client(None, &headers(&[(forwarded, "1.2.3.4")])),
            None
        );
    }
}
