//! One TCP connect: whether an instance without a health check listens.

use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time};

/// A process that has just started often listens a moment later: knocking again soon costs less than the next tick.
const KNOCK: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_millis(900);

/// Whether the address takes a connection, tried for a little less than a second.
pub async fn open(address: SocketAddr) -> bool {
    let knocking = async {
        while TcpStream::connect(address).await.is_err() {
            time::sleep(KNOCK).await;
        }
    };
    time::timeout(PATIENCE, knocking).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_open_and_a_closed_port_is_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(open(address).await);
        drop(listener);
        assert!(!open(address).await);
    }
}
