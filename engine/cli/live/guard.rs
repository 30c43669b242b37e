//! [`Guard`]: who may look. On this machine everybody who asks for it by a name that only this machine has, so that no page
//! of the web that has its own name point here can; from elsewhere who has the token.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use hyper::{
    HeaderMap,
    header::{COOKIE, HOST, ORIGIN},
};

/// Who may look.
#[derive(Debug)]
pub struct Guard {
    token: Option<String>,
    cookie: String,
}

/// What becomes of a request.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It is answered.
    Welcome,
    /// It brought the token: it is kept in this cookie, and asked again without it.
    Keep(String),
    /// It asked for another name than this server's.
    Elsewhere,
    /// It needs the token.
    Stranger,
}

impl Guard {
    /// Of a server at this address.
    ///
    /// # Errors
    /// A token is needed, and the system gives no random numbers.
    pub fn of(address: SocketAddr) -> Result<Self> {
        let cookie = format!("flow-{}", address.port());
        if address.ip().is_loopback() {
            return Ok(Self { token: None, cookie });
        }
        let mut random = [0u8; 24];
        getrandom::fill(&mut random).context("cannot make a token")?;
        Ok(Self { token: Some(random.iter().map(|byte| format!("{byte:02x}")).collect()), cookie })
    }

    /// What must stand behind the address for a first look: `?token=…`, or nothing.
    pub fn query(&self) -> String {
        self.token.as_ref().map(|token| format!("?token={token}")).unwrap_or_default()
    }

    /// Whether a request with these headers and this query is answered.
    pub fn judge(&self, headers: &HeaderMap, query: Option<&str>) -> Verdict {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(HOST).unwrap_or_default();
        // What another page has its reader's browser ask for is not answered, and is not to be read by that page.
        if let Some(origin) = text(ORIGIN)
            && origin.split_once("://").map(|(_, host)| host) != Some(host)
        {
            return Verdict::Elsewhere;
        }
        let Some(token) = &self.token else {
            return if is_this_machine(host) { Verdict::Welcome } else { Verdict::Elsewhere };
        };
        let mut asked = query.into_iter().flat_map(|query| query.split('&'));
        if asked.any(|pair| pair.strip_prefix("token=").is_some_and(|given| same(given, token))) {
            return Verdict::Keep(format!("{}={token}; Path=/; HttpOnly; SameSite=Strict", self.cookie));
        }
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        if cookies.any(|(name, given)| name == self.cookie && same(given, token)) {
            Verdict::Welcome
        } else {
            Verdict::Stranger
        }
    }
}

/// In the same time whatever they have in common: digests are compared so.
fn same(a: &str, b: &str) -> bool {
    blake3::hash(a.as_bytes()) == blake3::hash(b.as_bytes())
}

/// `localhost`, `127.0.0.1:80`, `[::1]:80`; any port, for it may be forwarded.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    let inside = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || inside.unwrap_or(name).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(guard: &Guard, headers: &[(&'static str, &str)], query: Option<&str>) -> Verdict {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        guard.judge(&headers, query)
    }

    #[test]
    fn on_this_machine_names_of_others_are_refused() {
        let guard = Guard::of("127.0.0.1:4750".parse().unwrap()).unwrap();
        assert_eq!(guard.query(), "");
        for host in ["127.0.0.1:4750", "localhost", "LocalHost:80", "[::1]:4750", "127.8.9.1"] {
            assert_eq!(judge(&guard, &[("host", host)], None), Verdict::Welcome, "{host}");
        }
        for host in ["evil.example:4750", "127.0.0.1.evil.example", "localhost.evil.example", "", "0.0.0.0", "[::2]"] {
            assert_eq!(judge(&guard, &[("host", host)], None), Verdict::Elsewhere, "{host}");
        }
        let from = |origin| judge(&guard, &[("host", "localhost:4750"), ("origin", origin)], None);
        assert_eq!(from("http://localhost:4750"), Verdict::Welcome);
        assert_eq!(
            [from("http://evil.example"), from("null"), from("http://localhost:81")],
            [const { Verdict::Elsewhere }; 3]
        );
    }

    #[test]
    fn from_elsewhere_a_token_is_needed_and_kept_in_a_cookie() {
        let guard = Guard::of("0.0.0.0:4750".parse().unwrap()).unwrap();
        let query = guard.query();
        let token = query.strip_prefix("?token=").unwrap();
        assert_eq!(token.len(), 48);
        assert_ne!(guard.query(), Guard::of("0.0.0.0:4750".parse().unwrap()).unwrap().query());
        let host = ("host", "node7:4750");
        assert_eq!(judge(&guard, &[host], None), Verdict::Stranger);
        assert_eq!(judge(&guard, &[host], Some("token=")), Verdict::Stranger);
        assert_eq!(judge(&guard, &[host, ("cookie", "flow-4750=x; flow-1=y")], None), Verdict::Stranger);
        let Verdict::Keep(cookie) = judge(&guard, &[host], Some(&query[1..])) else { panic!("refused") };
        let cookie = cookie.split(';').next().unwrap().to_owned();
        assert_eq!(judge(&guard, &[host, ("cookie", &format!("a=b; {cookie}"))], None), Verdict::Welcome);
    }
}
