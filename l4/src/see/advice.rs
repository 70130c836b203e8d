//! What to do about a dropped packet.

use tidegate_ebpf::abi::Reason;

/// What a drop means, and what to do.
#[must_use]
pub fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::Ttl => "its time to live ended here: look for a routing loop between the client and this machine",
        Reason::TcpFlags => "no TCP sends these flags: a scan, or a broken sender; nothing is wrong here",
        Reason::NoLocalAddress => {
            "fullnat needs a local address of this family: add one to l4.local_addresses and restart tidegate"
        }
        Reason::NoPort => {
            "all local ports that this flow may have are taken: add addresses to l4.local_addresses (`tidegate l4 \
             flows` shows who has them)"
        }
        Reason::NoNeighbour => {
            "the hardware address of the real (or of its gateway) is not known: is it up, and on this network? \
             `ip neigh` shows what the kernel knows"
        }
        Reason::NoRoute => "there is no route to the real: `ip route get ADDRESS` shows what the kernel would do",
        Reason::ForwardingOff => {
            "forwarding was switched off on the interface: set net.ipv4.conf.IF.forwarding (ipv6: likewise) to 1, or \
             restart tidegate, which does it"
        }
        Reason::Fragment => {
            "a fragment whose first one was not seen: fragments must take one path and arrive in order; lower the \
             client's MTU or MSS"
        }
        Reason::TooBig => {
            "it does not fit the way to the real with what the tunnel adds: raise the MTU on that way, or lower the \
             reals' MSS (docs/operations.md, MTU)"
        }
        Reason::Denied => "the ELB's lists refuse this client: see --allow and --deny of `tidegate elb show`",
        Reason::SourceRate => "the client's network opens too many flows: see --source-rate of `tidegate elb show`",
        Reason::ServiceRate => "all clients together open too many flows: see --vip-rate of `tidegate elb show`",
        Reason::Cookie => {
            "it acknowledges no connection that is known, while SYNs are answered with cookies: part of a flood, or a \
             connection that was forgotten"
        }
        Reason::NoReal => "the ring names a real that is not there, which is a fault of tidegate's: please report it",
        Reason::Malformed => "its headers contradict each other: a broken or hostile sender",
        Reason::NoRoom => "the driver has no room for a tunnel's headers: set l4.mode to \"generic\"",
        Reason::NotReady => "the real has not taken the connection yet: the client will send it again",
    }
}

/// The same by the name that the report has for it.
#[must_use]
pub fn advice_of(name: &str) -> Option<&'static str> {
    let number = Reason::NAMES.iter().position(|known| *known == name)?;
    Some(advice(Reason::from_number(number as u32)))
}
