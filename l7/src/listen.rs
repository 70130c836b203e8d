//! Listeners: opened and closed one by one while the others serve.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_http::ResponseHeader;
use pingora_proxy::HttpProxy;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{connection, proxy::Proxy, table::Table, traffic::PoolTraffic};

/// Connections that wait to be accepted. The kernel cuts it to net.core.somaxconn (4,096 since Linux 5.4).
const BACKLOG: i32 = 4096;

/// How long accept() rests when the process is out of file descriptors.
const BREATH: Duration = Duration::from_millis(100);

pub(crate) type Routes = Table<Arc<PoolTraffic>>;

/// What the connections of one listener share.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) routes: ArcSwap<Routes>,
    /// The listener is closed: idle connections end at once, the others after the answer that they are at.
    pub(crate) closing: CancellationToken,
    /// The same as `closing`, for Pingora.
    pub(crate) shutdown: watch::Sender<bool>,
}

impl Site {
    fn new(address: SocketAddr, routes: Routes) -> Arc<Self> {
        Arc::new(Self {
            address,
            routes: ArcSwap::from_pointee(routes),
            closing: CancellationToken::new(),
            shutdown: watch::Sender::new(false),
        })
    }

    /// What connections carry to find this again.
    pub(crate) fn digest(self: &Arc<Self>) -> Arc<ProxyDigest> {
        let nothing = ResponseHeader::build_no_case(200, Some(0)).expect("200 is a status");
        Arc::new(ProxyDigest::new(Box::new(nothing), Some(Box::new(self.clone()))))
    }

    /// How a request finds its listener: Pingora hands a connection's "proxy digest" through to each request of it,
    /// over HTTP/1 and HTTP/2, and has room for data of ours there. We use no CONNECT proxies, whom it is made for.
    pub(crate) fn of(digest: &ProxyDigest) -> Option<&Arc<Self>> {
        digest.user_data.as_ref()?.downcast_ref()
    }
}

/// What all listeners serve with.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) proxy: Arc<HttpProxy<Proxy>>,
    pub(crate) connections: TaskTracker,
    pub(crate) grace: Duration,
}

/// A listener that listens.
pub(crate) struct Listening {
    site: Arc<Site>,
    accepting: JoinHandle<()>,
}

impl Listening {
    /// Opens the socket and starts to accept.
    pub(crate) fn open(address: SocketAddr, routes: Routes, server: &Server) -> io::Result<Self> {
        let listener = bind(address)?;
        let site = Site::new(address, routes);
        let accepting = tokio::spawn(accept(listener, site.clone(), server.clone()));
        Ok(Self { site, accepting })
    }

    pub(crate) fn set(&self, routes: Routes) {
        self.site.routes.store(Arc::new(routes));
    }

    /// On return the port is free; requests in flight go on for the grace period.
    pub(crate) async fn close(self) {
        self.site.closing.cancel();
        self.site.shutdown.send_replace(true);
        if let Err(error) = self.accepting.await {
            tracing::error!(listener = %self.site.address, %error, "the accept loop broke");
        }
    }
}

/// Says in words why a listener could not be opened.
pub(crate) fn problem(address: SocketAddr, error: &io::Error) -> String {
    let (ip, port) = (address.ip(), address.port());
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "is taken: stop who listens there (`ss -ltnp` shows it) or use another port".into(),
        io::ErrorKind::PermissionDenied => "is not allowed: run as root or with CAP_NET_BIND_SERVICE".into(),
        _ => format!("cannot be opened: {error}"),
    };
    format!("port {port} of {ip} {why}; tried again each second")
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // The port of connections that linger in TIME_WAIT may be listened on again.
    socket.set_reuse_address(true)?;
    // A VIP is served before it is on an interface: fill before announce.
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
        // Otherwise [::]:80 would take 0.0.0.0:80 too.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, site: Arc<Site>, server: Server) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = site.closing.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => serve(tcp, peer, &site, &server),
            // The client gave up before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(listener = %site.address, %error, "could not accept a connection; is `ulimit -n` too low?");
                sleep(BREATH).await;
            }
        }
    }
    // Who was let in by the kernel is served; closing the socket would reset them.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((tcp, peer)) = listener.accept() {
        if let Ok(tcp) = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp)) {
            serve(tcp, peer, &site, &server);
        }
    }
}

fn serve(tcp: TcpStream, peer: SocketAddr, site: &Arc<Site>, server: &Server) {
    // Fails only when the connection is gone already, which its first read will tell.
    let _ = tcp.set_nodelay(true);
    let serving = connection::serve(tcp, peer, site.clone(), server.proxy.clone(), server.grace);
    server.connections.spawn(serving);
}
