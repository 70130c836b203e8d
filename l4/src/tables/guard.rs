//! What protects a service, as its maps hold it: limits, and the lists of who may talk to it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use tidegate_ebpf::abi::{self, Access, Address, SECOND};

use crate::input::{Protection, Rate};

/// Both lists: by prefix length (of the 128 bits of an address) and network, what holds there.
pub(super) type Lists = BTreeMap<(u32, Address), u32>;

/// A rate is a time between two flows. They may come so far ahead of it as a burst needs (the generic cell rate
/// algorithm, ITU-T I.371: the bucket is one time stamp).
fn pace(rate: Rate) -> (u64, u64) {
    let gap = SECOND / u64::from(rate.per_second.max(1));
    (gap, gap * u64::from(rate.burst))
}

pub(super) fn limits(protection: &Protection) -> abi::Limits {
    let mut limits = abi::Limits::default();
    if let Some(source) = &protection.per_source {
        (limits.source_gap, limits.source_ahead) = pace(source.rate);
        limits.mask_v4 = u32::MAX.checked_shl(32 - u32::from(source.prefix_v4).min(32)).unwrap_or(0).to_be();
        let bits = u32::from(source.prefix_v6).min(128);
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        limits.mask_v6 = [96, 64, 32, 0].map(|shift| ((mask >> shift) as u32).to_be());
    }
    if let Some(rate) = protection.per_vip {
        (limits.service_gap, limits.service_ahead) = pace(rate);
    }
    if let Some(per_second) = protection.syn_cookies_above {
        // A second's worth at once: short bursts are not an attack.
        (limits.cookie_gap, limits.cookie_ahead) = pace(Rate { per_second, burst: per_second });
    }
    limits
}

/// [`abi::Service::checks`].
pub(super) fn checks(protection: &Protection) -> u8 {
    let Protection { allow, deny, per_source, per_vip, syn_cookies_above } = protection;
    let bit = |needed: bool, bit: u8| if needed { bit } else { 0 };
    bit(!allow.is_empty() || !deny.is_empty(), abi::Service::ACCESS)
        | bit(!allow.is_empty(), abi::Service::CLOSED)
        | bit(per_source.is_some(), abi::Service::SOURCE_RATE)
        | bit(per_vip.is_some(), abi::Service::SERVICE_RATE)
        | bit(syn_cookies_above.is_some(), abi::Service::COOKIES)
}

/// A network that is on both lists is denied. Networks of the family that the VIP is not of mean none of its clients.
pub(super) fn lists(protection: &Protection, v4: bool) -> Lists {
    let entries = |networks: &[IpNet], access: Access| {
        let own = networks.iter().filter(|network| network.addr().is_ipv4() == v4);
        own.map(move |network| (place(network), access as u32)).collect::<Vec<_>>()
    };
    let mut lists: Lists = entries(&protection.allow, Access::Allow).into_iter().collect();
    lists.extend(entries(&protection.deny, Access::Deny));
    lists
}

/// IPv4's networks stand below `::ffff:0:0/96`.
fn place(network: &IpNet) -> (u32, Address) {
    let before = if network.addr().is_ipv4() { 96 } else { 0 };
    (before + u32::from(network.prefix_len()), network.trunc().addr().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::SourceRate;

    #[test]
    fn a_rate_is_a_gap_and_a_burst_is_how_far_ahead() {
        let protection = Protection {
            per_source: Some(SourceRate { rate: Rate { per_second: 100, burst: 20 }, prefix_v4: 24, prefix_v6: 56 }),
            per_vip: Some(Rate { per_second: 1, burst: 1 }),
            syn_cookies_above: Some(1000),
            ..Protection::default()
        };
        let limits = limits(&protection);
        assert_eq!((limits.source_gap, limits.source_ahead), (10_000_000, 200_000_000));
        assert_eq!((limits.service_gap, limits.service_ahead), (SECOND, SECOND));
        assert_eq!((limits.cookie_gap, limits.cookie_ahead), (1_000_000, SECOND));
        assert_eq!(limits.mask_v4.to_ne_bytes(), [255, 255, 255, 0]);
        assert_eq!(limits.mask_v6.map(u32::to_ne_bytes).concat()[..8], [255, 255, 255, 255, 255, 255, 255, 0]);
        assert_eq!(limits.mask_v6[2..], [0, 0]);
        let all = abi::Service::SOURCE_RATE | abi::Service::SERVICE_RATE | abi::Service::COOKIES;
        assert_eq!(checks(&protection), all);
    }

    #[test]
    fn a_prefix_of_everything_and_of_nothing() {
        let source = |prefix_v4, prefix_v6| {
            let rate = Rate { per_second: 1, burst: 1 };
            limits(&Protection { per_source: Some(SourceRate { rate, prefix_v4, prefix_v6 }), ..Protection::default() })
        };
        assert_eq!((source(0, 0).mask_v4, source(0, 0).mask_v6), (0, [0; 4]));
        assert_eq!((source(32, 128).mask_v4, source(32, 128).mask_v6), (u32::MAX, [u32::MAX; 4]));
    }

    #[test]
    fn a_network_on_both_lists_is_denied_and_an_allow_list_closes_the_door() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let protection = Protection {
            allow: vec![net("10.1.2.3/8"), net("2001:db8::/32")],
            deny: vec![net("10.0.0.0/8")],
            ..Protection::default()
        };
        let address = |text: &str| Address::from(text.parse::<std::net::IpAddr>().unwrap());
        let deny = ((104, address("10.0.0.0")), Access::Deny as u32);
        assert_eq!(lists(&protection, true).into_iter().collect::<Vec<_>>(), [deny]);
        let allow = ((32, address("2001:db8::")), Access::Allow as u32);
        assert_eq!(lists(&protection, false).into_iter().collect::<Vec<_>>(), [allow]);
        assert_eq!(checks(&protection), abi::Service::ACCESS | abi::Service::CLOSED);
        assert_eq!(checks(&Protection { allow: Vec::new(), ..protection }), abi::Service::ACCESS);
    }
}
