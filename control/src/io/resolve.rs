//! The addresses of an agent's name.

use std::{net::IpAddr, time::Duration};

use tokio::{net::lookup_host, time};

const PATIENCE: Duration = Duration::from_secs(5);

/// Every address of the host, sorted, none twice; a literal is its own. Empty: not found out, ask again.
pub async fn addresses(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    let found = time::timeout(PATIENCE, lookup_host((host, 0))).await;
    let mut addresses: Vec<IpAddr> = match found {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_stand_for_themselves_and_nonsense_for_nothing() {
        for literal in ["10.77.1.1", "fd77:0:1::1"] {
            assert_eq!(addresses(literal).await, [literal.parse::<IpAddr>().unwrap()]);
        }
        assert!(addresses("localhost").await.iter().any(IpAddr::is_loopback));
        assert_eq!(addresses("no such host..").await, [] as [IpAddr; 0]);
    }
}
