//! Who does what layer 4 does: nft in the kernel, HAProxy and nginx in user space.

use super::world::{self, REALS, Vip};
use crate::{
    peers::{self, Peer},
    wrk::WRK,
};

pub(super) const NFT: Peer = Peer { package: "nftables", program: "/usr/sbin/nft" };
pub(super) const HAPROXY: Peer = Peer { package: "haproxy", program: "/usr/sbin/haproxy" };
pub(super) const NGINX: Peer = Peer { package: "nginx", program: "/usr/sbin/nginx" };
/// A module, and thus no program: but it is there or it is not.
pub(super) const STREAM: Peer =
    Peer { package: "libnginx-mod-stream", program: "/usr/lib/nginx/modules/ngx_stream_module.so" };

pub(super) fn provide(notes: &mut Vec<String>) {
    peers::provide(&[NFT, HAPROXY, NGINX, STREAM, WRK], "to measure layer 4 beside them", notes);
}

/// What nft does instead of a balancer. A flow's real is chosen by a hash of its client, once.
pub(super) fn rules(vip: &str, reals: &[String], masquerade: bool) -> String {
    let map: Vec<String> = reals.iter().enumerate().map(|(n, real)| format!("{n} : {real}")).collect();
    let (count, map) = (reals.len(), map.join(", "));
    let back = if masquerade {
        "chain back { type nat hook postrouting priority srcnat; ct status dnat masquerade; }"
    } else {
        ""
    };
    format!(
        "table ip bench {{
            chain there {{
                type nat hook prerouting priority dstnat;
                ip daddr {vip} tcp dport 80 dnat to jhash ip saddr . tcp sport mod {count} map {{ {map} }}
                ip daddr {vip} udp dport 80 dnat to jhash ip saddr . udp sport mod {count} map {{ {map} }}
            }}
            {back}
        }}"
    )
}

/// The rules for the same VIP and reals that ours has.
pub(super) fn rules_of_the_world(masquerade: bool) -> String {
    let reals: Vec<String> = (1..=REALS).map(|n| world::real(false, n).to_string()).collect();
    rules(&Vip::FullNat.address(false).to_string(), &reals, masquerade)
}
