//! Connections: accepted on listeners that were bound elsewhere (in any namespace), cut on command, and watched, so
//! that a bench learns when an event's bytes were handed to the kernel.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::events::Receipt;

/// An endpoint's listener and the switch that takes it down and up.
#[derive(Debug)]
pub(crate) struct Endpoint {
    socket: std::net::TcpListener,
    /// None while the endpoint is down: tokio never forgets that a socket was shut down, and would spin on it.
    listener: Option<TcpListener>,
    node: Arc<Node>,
}

#[derive(Debug)]
pub(crate) struct Node {
    fd: RawFd,
    /// Cancelled to cut all connections; a new one for each life of the endpoint.
    alive: watch::Sender<CancellationToken>,
}

/// What a request knows of its connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub remote: SocketAddr,
    pub cut: CancellationToken,
    /// Receipts of frames that were given to this connection and are not yet written.
    pub receipts: Arc<Mutex<Vec<Receipt>>>,
}

pub(crate) struct Io {
    stream: TcpStream,
    connection: Connection,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Endpoint {
    pub(crate) fn new(socket: std::net::TcpListener, stop: &CancellationToken) -> io::Result<(Self, Arc<Node>)> {
        socket.set_nonblocking(true)?;
        let node = Arc::new(Node { fd: socket.as_raw_fd(), alive: watch::Sender::new(stop.child_token()) });
        Ok((Endpoint { socket, listener: None, node: node.clone() }, node))
    }

    /// One connection, or an error that may pass.
    async fn accept_one(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        if self.listener.is_none() {
            self.listener = Some(TcpListener::from_std(self.socket.try_clone()?)?);
        }
        self.listener.as_ref().expect("just made").accept().await
    }
}

impl Node {
    /// Refuses connections and cuts those there are, as a process that died.
    pub(crate) fn down(&self) {
        self.alive.borrow().cancel();
        // On Linux a listening socket that is shut down refuses, and keeps its port if that was asked for by number;
        // listening again revives it.
        // SAFETY: the descriptor belongs to the endpoint's socket, which lives as long as the stand-in serves.
        unsafe { libc::shutdown(self.fd, libc::SHUT_RD) };
    }

    pub(crate) fn up(&self, stop: &CancellationToken) {
        // SAFETY: as above.
        unsafe { libc::listen(self.fd, 1024) };
        self.alive.send_replace(stop.child_token());
    }
}

impl axum::serve::Listener for Endpoint {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        let mut lives = self.node.alive.subscribe();
        loop {
            let alive = lives.borrow_and_update().clone();
            let accepted = tokio::select! {
                biased;
                () = alive.cancelled() => None,
                accepted = self.accept_one() => Some(accepted),
            };
            match accepted {
                None => {
                    self.listener = None;
                    if lives.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                Some(Ok((stream, remote))) => {
                    // Events are small and each matters at once.
                    _ = stream.set_nodelay(true);
                    let cut = alive.child_token();
                    let connection = Connection { remote, cut: cut.clone(), receipts: Arc::default() };
                    return (Io { stream, connection, cut: Box::pin(cut.cancelled_owned()) }, remote);
                }
                // Out of descriptors, most likely: that may pass.
                Some(Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Connected<IncomingStream<'_, Endpoint>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Endpoint>) -> Self {
        stream.io().connection.clone()
    }
}

impl Io {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn wrote(&self, before: Instant) {
        for receipt in self.connection.receipts.lock().expect("nobody panics with it").drain(..) {
            receipt.written(before);
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let before = Instant::now();
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.wrote(before);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let before = Instant::now();
        let n = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.wrote(before);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
