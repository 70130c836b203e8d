//! What the upstream is told about the request. Hop-by-hop fields are Pingora's, the Host stays.

use std::net::IpAddr;

use pingora_core::Result;
use pingora_http::RequestHeader;

use super::route;

const FOR: &str = "x-forwarded-for";

/// Adds who asked, and how. A client may write anything into these fields: `X-Forwarded-For` gets the address that we
/// see as its last entry, the other two are ours alone.
pub(crate) fn forward(request: &mut RequestHeader, client: Option<IpAddr>) -> Result<()> {
    // Upstreams understand the origin form; to some an absolute target is a path.
    if let Some((_, path)) = route::absolute(request.raw_path()) {
        let path = if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() };
        let host = route::host(request).unwrap_or_default().to_owned();
        request.set_raw_path(&path)?;
        request.insert_header(http::header::HOST, host)?;
    }
    if let Some(client) = client {
        // A client of a dual-stack socket would show as ::ffff:10.0.0.1.
        let client = client.to_canonical();
        let before: Vec<_> = request.headers.get_all(FOR).iter().filter_map(|value| value.to_str().ok()).collect();
        let all = if before.is_empty() { client.to_string() } else { format!("{}, {client}", before.join(", ")) };
        request.insert_header(FOR, all)?;
    }
    request.insert_header("x-forwarded-proto", "http")?;
    match route::host(request).map(str::to_owned) {
        Some(host) => request.insert_header("x-forwarded-host", host)?,
        None => drop(request.remove_header("x-forwarded-host")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, headers: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn all(request: &RequestHeader, name: &str) -> Vec<String> {
        request.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn says_who_asked_after_what_others_said_and_keeps_the_host() {
        let mut request = request(
            "/x?y",
            &[("host", "Shop.example:80"), (FOR, "1.1.1.1"), (FOR, "2.2.2.2, 3.3.3.3"), ("x-forwarded-proto", "https")],
        );
        forward(&mut request, Some("10.77.0.10".parse().unwrap())).unwrap();
        assert_eq!(all(&request, FOR), ["1.1.1.1, 2.2.2.2, 3.3.3.3, 10.77.0.10"]);
        assert_eq!(all(&request, "x-forwarded-proto"), ["http"]);
        assert_eq!(all(&request, "x-forwarded-host"), ["Shop.example:80"]);
        assert_eq!(all(&request, "host"), ["Shop.example:80"]);
        assert_eq!(request.raw_path(), b"/x?y");
    }

    #[test]
    fn absolute_targets_become_origin_form() {
        for (target, expected) in
            [("http://shop.example/x?y", "/x?y"), ("http://shop.example", "/"), ("http://shop.example?y", "/?y")]
        {
            let mut request = request(target, &[("host", "shop.example")]);
            forward(&mut request, Some("::ffff:10.77.0.10".parse().unwrap())).unwrap();
            assert_eq!(request.raw_path(), expected.as_bytes(), "{target}");
            assert_eq!(all(&request, "host"), ["shop.example"]);
            assert_eq!(all(&request, FOR), ["10.77.0.10"]);
        }
    }
}
