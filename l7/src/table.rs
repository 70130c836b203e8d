//! Which route a request takes: by host, then by path, the most specific first.
//!
//! A lookup costs one hash per label of the host and per `/` of the path, whatever the number of routes.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use crate::input::Route;

/// The routes of one listener, each with what it leads to.
#[derive(Debug)]
pub(crate) struct Table<T> {
    exact: HashMap<Arc<str>, Paths<T>>,
    /// By what follows `*.`.
    wildcard: HashMap<Arc<str>, Paths<T>>,
    any: Paths<T>,
}

type Paths<T> = HashMap<Arc<str>, Entry<T>>;

#[derive(Debug)]
pub(crate) struct Entry<T> {
    route: Route,
    pub(crate) target: T,
}

/// Why nothing matched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Miss {
    /// No route is for this host.
    Host,
    /// Routes are for this host, but for other paths.
    Path,
}

impl<T> Table<T> {
    /// Of two routes with the same host and path the first one counts.
    pub(crate) fn new(routes: impl IntoIterator<Item = (Route, T)>) -> Self {
        let mut table = Self { exact: HashMap::new(), wildcard: HashMap::new(), any: HashMap::new() };
        for (route, target) in routes {
            let paths = match &route.host {
                None => &mut table.any,
                Some(host) => match host.strip_prefix("*.") {
                    Some(suffix) => table.wildcard.entry(suffix.into()).or_default(),
                    None => table.exact.entry(host.clone()).or_default(),
                },
            };
            paths.entry(route.path.clone()).or_insert(Entry { route, target });
        }
        table
    }

    /// `host` as the request says it; `path` without the query.
    pub(crate) fn find(&self, host: Option<&str>, path: &str) -> Result<&Entry<T>, Miss> {
        let host = host.map(normal_host);
        let suffixes = host.iter().flat_map(|host| host.match_indices('.').map(|(dot, _)| &host[dot + 1..]));
        let exact = host.as_deref().and_then(|host| self.exact.get(host));
        let wildcard = suffixes.filter_map(|suffix| self.wildcard.get(suffix));
        let any = Some(&self.any).filter(|paths| !paths.is_empty());

        let mut miss = Miss::Host;
        for paths in exact.into_iter().chain(wildcard).chain(any) {
            if let Some(entry) = find_path(paths, path) {
                return Ok(entry);
            }
            miss = Miss::Path;
        }
        Err(miss)
    }
}

/// Says in words which route it is.
impl<T> fmt::Display for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Route { host, path, pool } = &self.route;
        write!(f, "host {}, path {path}, to the pool {pool}", host.as_deref().unwrap_or("any"))
    }
}

/// The longest path that covers `path`: itself, then every prefix that ends with or before a `/`.
fn find_path<'a, T>(paths: &'a Paths<T>, path: &str) -> Option<&'a Entry<T>> {
    // `OPTIONS *` and a path that is not one ask for the whole server.
    let path = if path.starts_with('/') { path } else { "/" };
    paths.get(path).or_else(|| {
        path.match_indices('/').rev().find_map(|(slash, _)| {
            let below = paths.get(&path[..=slash]);
            below.or_else(|| if slash > 0 { paths.get(&path[..slash]) } else { None })
        })
    })
}

/// Lower case, without a port and without the dot that ends a full name.
fn normal_host(host: &str) -> Cow<'_, str> {
    let port = host.rfind(':').filter(|colon| host[colon + 1..].bytes().all(|byte| byte.is_ascii_digit()));
    // The colons inside of an IPv6 literal's brackets are no ports, and every literal ends with `]`.
    let host = port.map_or(host, |colon| &host[..colon]);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(host: Option<&str>, path: &str) -> Route {
        Route { host: host.map(Into::into), path: path.into(), pool: "p".into() }
    }

    fn table(routes: &[(Option<&str>, &str)]) -> Table<usize> {
        Table::new(routes.iter().enumerate().map(|(index, (host, path))| (route(*host, path), index)))
    }

    #[test]
    fn the_most_specific_route_wins() {
        let table = table(&[
            (None, "/"),
            (Some("shop.example"), "/"),
            (Some("shop.example"), "/api"),
            (Some("shop.example"), "/api/v2/"),
            (Some("*.example"), "/"),
            (Some("*.eu.example"), "/"),
            (None, "/health"),
            (Some("only.example"), "/x"),
            (Some("[fd77::1]"), "/"),
        ]);
        let cases = [
            (Some("shop.example"), "/", 1),
            (Some("SHOP.example.:8080"), "/api", 2),
            (Some("shop.example"), "/api/", 2),
            (Some("shop.example"), "/apix", 1),
            (Some("shop.example"), "/api/v2", 2),
            (Some("shop.example"), "/api/v2/", 3),
            (Some("shop.example"), "/api/v2/a/b", 3),
            (Some("a.example"), "/api", 4),
            (Some("a.b.example"), "/", 4),
            (Some("a.eu.example"), "/", 5),
            (Some("eu.example"), "/", 4),
            (Some("example"), "/", 0),
            (Some("only.example"), "/y", 4),
            (Some("elsewhere"), "/health/deep", 6),
            (Some("[FD77::1]:80"), "/", 8),
            (Some("[fd77::1]"), "/", 8),
            (None, "*", 0),
        ];
        for (host, path, expected) in cases {
            assert_eq!(table.find(host, path).map(|entry| entry.target), Ok(expected), "{host:?} {path}");
        }
    }

    #[test]
    fn says_whether_the_host_or_the_path_is_unknown_and_which_route_it_took() {
        let table = table(&[(Some("shop.example"), "/api")]);
        assert_eq!(table.find(Some("shop.example"), "/").err(), Some(Miss::Path));
        assert_eq!(table.find(Some("other.example"), "/api").err(), Some(Miss::Host));
        assert_eq!(table.find(None, "/api").err(), Some(Miss::Host));
        let taken = table.find(Some("shop.example"), "/api/x").map(ToString::to_string);
        assert_eq!(taken, Ok("host shop.example, path /api, to the pool p".to_owned()));
    }

    /// The rules as one would write them down, tried on every route.
    fn naive(routes: &[Route], host: &str, path: &str) -> Option<usize> {
        let host_rank = |route: &Route| match route.host.as_deref() {
            None => Some(0),
            Some(name) => match name.strip_prefix('*') {
                Some(suffix) => (host.ends_with(suffix) && host.len() > suffix.len()).then_some(suffix.len()),
                None => (name == host).then_some(usize::MAX),
            },
        };
        let covers = |prefix: &str| {
            path == prefix
                || path.strip_prefix(prefix).is_some_and(|rest| prefix.ends_with('/') || rest.starts_with('/'))
        };
        let matching = routes.iter().enumerate().filter(|(_, route)| covers(&route.path));
        let ranked = matching.filter_map(|(index, route)| {
            host_rank(route).map(|rank| ((rank, route.path.len(), std::cmp::Reverse(index)), index))
        });
        ranked.max().map(|(_, index)| index)
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_reading_of_the_rules(
            routes in prop::collection::vec(
                (prop::option::of(r"(\*\.)?[ab](\.[ab]){0,2}"), r"(/[xy]{1,2}){0,3}/?".prop_map(|path| if path.is_empty() { "/".to_owned() } else { path })),
                0..12,
            ),
            host in r"[ab](\.[ab]){0,3}",
            path in r"(/[xy]{1,2}){0,4}/?".prop_map(|path| format!("/{}", path.trim_start_matches('/'))),
        ) {
            let routes: Vec<Route> = routes.iter().map(|(host, path)| route(host.as_deref(), path)).collect();
            let table = Table::new(routes.iter().cloned().enumerate().map(|(index, route)| (route, index)));
            let found = table.find(Some(&host), &path).ok().map(|entry| entry.target);
            prop_assert_eq!(found, naive(&routes, &host, &path));
            let shouted = format!("{}:8080", host.to_uppercase());
            prop_assert_eq!(table.find(Some(&shouted), &path).ok().map(|entry| entry.target), found);
        }

        #[test]
        fn takes_any_text_for_host_and_path(host in ".*", path in ".*") {
            let table = table(&[(Some("*.a"), "/x"), (None, "/y")]);
            let _ = table.find(Some(&host), &path);
        }
    }
}
