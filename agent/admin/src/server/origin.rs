//! Protection against cross-site requests: a page of another site, open in the browser of an operator who forwards the
//! admin port, must not be able to change anything.

use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;

/// Whether a browser sent the request on behalf of another site. Other clients send none of these headers.
pub(super) fn is_foreign(request: &Parts) -> bool {
    let text = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return true;
    }
    let Some(origin) = text(ORIGIN.as_str()) else { return false };
    let Some(authority) = origin.split_once("://").and_then(|(_, rest)| rest.parse::<Authority>().ok())
    else {
        return true;
    };
    // DNS rebinding: a foreign name that resolves to this address is still a foreign site.
    let host = authority.host().trim_matches(['[', ']']);
    let ours = host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok();
    !ours || text(HOST.as_str()).is_none_or(|host| !host.eq_ignore_ascii_case(authority.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_our_own_may_post() {
        for (headers, foreign) in [
            (&[][..], false),
            (&[("host", "localhost:15000"), ("origin", "http://localhost:15000")], false),
            (&[("host", "[::1]:15000"), ("origin", "http://[::1]:15000")], false),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("host", "localhost:15000"), ("origin", "http://evil.example")], true),
            (&[("host", "localhost:15000"), ("origin", "http://localhost:8080")], true),
            (&[("host", "evil.example:15000"), ("origin", "http://evil.example:15000")], true),
            (&[("host", "localhost:15000"), ("origin", "null")], true),
        ] {
            let request = http::Request::post("/quitquitquit");
            let request =
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            assert_eq!(is_foreign(&request.body(()).unwrap().into_parts().0), foreign, "{headers:?}");
        }
    }
}
