//! Protection against pages of other sites, open in the browser of an operator who forwards the admin port: they must
//! neither change nor read anything.

use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;

/// Whether the request was sent to a name that anybody may have pointed here (DNS rebinding): a browser lets a page of
/// that name read the answer. `localhost` and addresses cannot be taken over; a request without a host is no browser's.
pub(super) fn is_misdirected(request: &Parts) -> bool {
    let ours = |host: &str| host.parse::<Authority>().is_ok_and(|host| is_ours(&host));
    let mut hosts = request.headers.get_all(HOST).iter();
    !hosts.all(|host| host.to_str().is_ok_and(ours)) || !request.uri.authority().is_none_or(is_ours)
}

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
    !is_ours(&authority)
        || text(HOST.as_str()).is_none_or(|host| !host.eq_ignore_ascii_case(authority.as_str()))
}

fn is_ours(authority: &Authority) -> bool {
    let host = authority.host().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_a_name_that_anybody_could_point_here_is_misdirected() {
        for (uri, hosts, misdirected) in [
            ("/", &[][..], false),
            ("/", &["localhost:15000"], false),
            ("/", &["LOCALHOST"], false),
            ("/", &["127.0.0.1:15000"], false),
            ("/", &["10.0.0.1"], false),
            ("/", &["[::1]:15000"], false),
            ("/", &["evil.example:15000"], true),
            ("/", &["localhost.evil.example"], true),
            ("/", &["127.0.0.1.evil.example:15000"], true),
            ("/", &["localhost:15000", "evil.example"], true),
            ("/", &[""], true),
            ("http://evil.example/config_dump", &["localhost"], true),
            ("http://localhost:15000/config_dump", &["localhost:15000"], false),
        ] {
            let request =
                hosts.iter().fold(http::Request::get(uri), |request, host| request.header(HOST, *host));
            let (parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(is_misdirected(&parts), misdirected, "{uri} {hosts:?}");
        }
    }

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
