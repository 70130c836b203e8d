//! The packets that are not plain: tags, options, extension headers, fragments, and ICMP about a VIP or a flow.

use crate::{
    abi::{Fragment, Reason, ServiceKey},
    balance::{Packet, Step, Tables, dropped, ours},
    icmp,
    parse::{self, Kind, Seen},
};

/// Reads the packet; what is about a flow is to be decided about.
#[inline(always)]
pub(crate) fn unusual<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &mut Seen) -> Step {
    *seen = Seen::default();
    let kind = parse::unusual(packet, seen);
    if kind == Kind::Other {
        return Step::PASS;
    }
    // Of an ICMP error the tuple is turned around, with our address still where it was.
    let ours = ours(tables, &seen.tuple.destination);
    if !ours.vip && !ours.local {
        return Step::PASS;
    }
    match kind {
        Kind::Echo if ours.vip => return icmp::echo(packet, tables, seen),
        Kind::Echo => return Step::PASS,
        Kind::First(key) if !T::DRY => {
            let ports = Fragment { source_port: seen.tuple.source_port, destination_port: seen.tuple.destination_port };
            tables.set_fragment(&key, &ports);
        }
        Kind::Later(key) => match tables.fragment(&key) {
            Some(ports) => {
                seen.tuple.source_port = ports.source_port;
                seen.tuple.destination_port = ports.destination_port;
            }
            // A filter's bit may be somebody else's: only what is certainly ours is refused.
            None if certain(tables, seen) => {
                dropped(tables, seen, Reason::Fragment as u32);
                return Step::drop(Reason::Fragment);
            }
            None => return Step::PASS,
        },
        _ => {}
    }
    Step::DECIDE
}

/// The destination is a VIP or a local address.
#[inline(always)]
fn certain<T: Tables>(tables: &T, seen: &Seen) -> bool {
    let address = seen.tuple.destination;
    tables.service(&ServiceKey::of_vip(address)).is_some() || tables.local_index(&address).is_some()
}
