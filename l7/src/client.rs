//! A client's connection in the shape that Pingora wants: bytes put back in front, small writes gathered.
//!
//! Pingora's own stream gathers writes only when its own listener made it: without that a response leaves in two
//! packets, the header and the body.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, l4::socket::SocketAddr as PingoraAddress, raw_connect::ProxyDigest,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf},
    net::TcpStream,
};

#[derive(Debug)]
pub(crate) struct Client {
    tcp: BufWriter<TcpStream>,
    /// Was read already and is to be read again.
    head: BytesMut,
    socket: Arc<SocketDigest>,
    /// The way of the listener to the requests: see [`crate::listen::Site`].
    site: Arc<ProxyDigest>,
}

impl Client {
    pub(crate) fn new(tcp: TcpStream, peer: SocketAddr, head: BytesMut, site: Arc<ProxyDigest>) -> Self {
        let socket = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // Known from accept(): saves Pingora a system call. Nobody has set it before, so this cannot fail.
        let _ = socket.peer_addr.set(Some(PingoraAddress::Inet(peer)));
        Self { tcp: BufWriter::new(tcp), head, socket: Arc::new(socket), site }
    }
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        }
        let length = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head[..length]);
        self.head.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Client {
    async fn shutdown(&mut self) {
        // Fails when the client is gone, which is what was wanted.
        let _ = self.tcp.shutdown().await;
    }
}

impl UniqueID for Client {
    fn id(&self) -> UniqueIDType {
        self.tcp.get_ref().as_raw_fd()
    }
}

impl GetTimingDigest for Client {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Client {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.site.clone())
    }
}

impl GetSocketDigest for Client {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

impl Ssl for Client {}
impl Peek for Client {}
