//! The whole of `follow` against a few answers on a loopback socket.

use std::{net::SocketAddr, sync::Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::cycle::StreamEvent;

const PATIENCE: Duration = Duration::from_secs(20);

/// Paths that were asked for, each with its login.
type Log = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// A server that answers each path with fixed bytes and remembers what it was asked, with the login.
struct Server {
    address: SocketAddr,
    asked: Log,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (asked.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, log.clone(), answer.clone()));
            }
        });
        Self { address, asked }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn logins(&self) -> Vec<Option<String>> {
        self.asked.lock().unwrap().iter().map(|(_, login)| login.clone()).collect()
    }
}

async fn serve(mut socket: TcpStream, log: Log, answer: Arc<impl Fn(&str) -> String>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let request = String::from_utf8(request).unwrap();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let login =
        request.lines().find_map(|line| line.to_lowercase().starts_with("authorization:").then(|| line.to_owned()));
    log.lock().unwrap().push((path.clone(), login));
    let answer = answer(&path);
    socket.write_all(answer.as_bytes()).await.unwrap();
    if answer.contains("text/event-stream") && !answer.contains("over") {
        // The stream stays open until the client leaves.
        let _ = socket.read_u8().await;
    }
}

fn http(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}", body.len())
}

fn stream(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{body}")
}

const ATTACHED: &str = "event: event_stream_attached\r\ndata: {\"remoteAddress\":\"127.0.0.1\"}\r\n\r\n";

struct Followed {
    events: mpsc::Receiver<Event>,
    requests: mpsc::Sender<Fetch>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(urls: Vec<String>) -> Followed {
    let config = MarathonConfig {
        urls,
        user: Some("tide".to_owned()),
        password: Some(Secret("gate".to_owned())),
        timeout_s: 5,
        ..MarathonConfig::default()
    };
    config.check().unwrap();
    let (event_in, events) = mpsc::channel(64);
    let (requests, request_out) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let task = tokio::spawn(follow(config, event_in, request_out, stop.clone()));
    Followed { events, requests, stop, task }
}

impl Followed {
    /// The first thing told that `pick` takes.
    async fn wait<T>(&mut self, pick: impl Fn(Marathon) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let Some(Event::Marathon(told)) = self.events.recv().await else { panic!("it ended") };
                if let Some(found) = pick(told) {
                    return found;
                }
            }
        };
        time::timeout(PATIENCE, waiting).await.expect("it was told in time")
    }

    async fn end(self) {
        self.stop.cancel();
        time::timeout(PATIENCE, self.task).await.expect("it stops in time").unwrap();
    }
}

#[tokio::test]
async fn the_leader_is_found_through_a_standby_and_given_the_login() {
    let leader = Server::start(|path| match path.split('?').next().unwrap() {
        "/v2/events" => {
            stream(&format!("{ATTACHED}\r\nevent: app_terminated_event\r\ndata: {{\"appId\":\"/a\"}}\r\n\r\n"))
        }
        "/v2/apps" => http("200 OK", "", r#"{"apps":[{"id":"/a","version":"v","instances":1},{"id":"/b"}]}"#),
        "/v2/apps/a" => http("404 Not Found", "", r#"{"message":"App '/a' does not exist"}"#),
        "/v2/apps/b" => http("200 OK", "", r#"{"app":{"id":"/b","version":7}}"#),
        "/v2/apps/b/versions/v0" => http("200 OK", "", r#"{"id":"/b","version":"v0","ports":[80]}"#),
        _ => http("404 Not Found", "", "<html>"),
    })
    .await;
    let location = format!("Location: {}/v2/events\r\n", leader.url());
    let standby = Server::start(move |_| http("302 Found", &location, "")).await;
    let mut followed = start(vec![standby.url()]);

    followed.wait(|told| matches!(told, Marathon::Attached).then_some(())).await;
    let gone = StreamEvent::AppTerminated { app: "/a".into() };
    followed.wait(|told| matches!(told, Marathon::Stream(event) if event == gone).then_some(())).await;

    followed.requests.send(Fetch::All).await.unwrap();
    let (apps, broken) = followed
        .wait(|told| match told {
            Marathon::Snapshot { apps, broken, .. } => Some((apps, broken)),
            _ => None,
        })
        .await;
    assert_eq!((apps.len(), &*apps[0].id, broken.len(), &*broken[0].0), (1, "/a", 1, "/b"));
    followed.requests.send(Fetch::App("/a".into())).await.unwrap();
    followed.wait(|told| matches!(told, Marathon::App { app: None, .. }).then_some(())).await;
    followed.requests.send(Fetch::App("/b".into())).await.unwrap();
    followed.wait(|told| matches!(told, Marathon::Broken { id, .. } if &*id == "/b").then_some(())).await;
    followed.requests.send(Fetch::Definition { app: "/b".into(), version: "v0".into() }).await.unwrap();
    followed
        .wait(|told| {
            matches!(told, Marathon::Definition { definition, .. } if definition.ports[0].container == 80).then_some(())
        })
        .await;
    followed.requests.send(Fetch::App("/nobody".into())).await.unwrap();
    let why = followed
        .wait(|told| match told {
            Marathon::FetchFailed { why, .. } => Some(why),
            _ => None,
        })
        .await;
    assert!(!why.is_empty(), "a 404 that is not Marathon's says nothing about the app");
    followed.end().await;
    for server in [&standby, &leader] {
        assert!(!server.logins().is_empty());
        let basic =
            |login: &Option<String>| login.as_deref().is_some_and(|login| login.ends_with("Basic dGlkZTpnYXRl"));
        assert!(server.logins().iter().all(basic), "{:?}", server.logins());
    }
}

#[tokio::test]
async fn a_dead_address_is_passed_by_for_the_stream_and_the_lists_alike() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let alive = Server::start(|path| match path.split('?').next().unwrap() {
        "/v2/events" => stream(ATTACHED),
        _ => http("200 OK", "", r#"{"apps":[]}"#),
    })
    .await;
    let mut followed = start(vec![format!("http://{closed}"), alive.url()]);
    let why = followed
        .wait(|told| match told {
            Marathon::Unreachable(why) => Some(why),
            _ => None,
        })
        .await;
    assert!(why.contains(&closed.to_string()), "{why}");
    followed.wait(|told| matches!(told, Marathon::Attached).then_some(())).await;
    followed.requests.send(Fetch::All).await.unwrap();
    followed.wait(|told| matches!(told, Marathon::Snapshot { .. }).then_some(())).await;
    followed.end().await;
}

#[tokio::test]
async fn a_stream_that_ends_is_opened_again() {
    let server = Server::start(|_| stream(&format!("{ATTACHED}: over\r\n\r\n"))).await;
    let mut followed = start(vec![server.url()]);
    for _ in 0..2 {
        followed.wait(|told| matches!(told, Marathon::Attached).then_some(())).await;
        followed
            .wait(|told| {
                matches!(told, Marathon::Unreachable(why) if why.contains("closed the event stream")).then_some(())
            })
            .await;
    }
    followed.end().await;
}

#[test]
fn a_bad_configuration_says_what_to_write() {
    let table = [
        (r#"urls = []"#, "list at least one"),
        (r#"urls = ["10.0.0.2:8080"]"#, "write http://host:8080"),
        (r#"urls = ["ftp://x"]"#, "write http://host:8080"),
        (r#"urls = ["http://a:b@x"]"#, "keys user and password"),
        ("timeout_s = 0", "use at least 1"),
        (r#"ca_file = "/no/such/file""#, "reading ca_file under [marathon], /no/such/file"),
    ];
    for (text, expected) in table {
        let config: MarathonConfig = toml::from_str(text).unwrap();
        let error = format!("{:#}", config.check().unwrap_err());
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(toml::from_str::<MarathonConfig>("url = 1").is_err());
    let secret: MarathonConfig = toml::from_str(r#"password = "gate""#).unwrap();
    assert!(!format!("{secret:?}").contains("gate"));
    secret.check().unwrap();
}
