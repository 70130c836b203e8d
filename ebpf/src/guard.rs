//! Who may open a flow: lists, and limits by token buckets.
//!
//! A bucket is one number, the time at which it would be empty again (the generic cell rate algorithm, ITU-T I.371):
//! each new flow pushes it ahead by the rate's reciprocal, and is refused when it is too far ahead of now. Two CPUs
//! that push at once may lose one push; a limit is not a promise to a single flow.

use crate::{
    abi::{ACCESS_DATA, Access, AccessKey, AccessKeyData, Address, Reason, Service, SourceKey, UDP},
    balance::Tables,
    parse::Seen,
};

pub const WELCOME: u32 = 0;
/// The SYN is to be answered with a cookie.
pub const COOKIE: u32 = 1;
/// Above it: a [`Reason`], plus this.
const REFUSED: u32 = 2;

/// [`Tables::meter`]: the new flows of a service.
pub const FLOWS: u32 = 0;
/// [`Tables::meter`]: the SYNs of a service that are forwarded without a cookie.
pub const SYNS: u32 = 1;

#[inline(always)]
#[must_use]
pub fn reason(refused: u32) -> Reason {
    Reason::from_number(refused.wrapping_sub(REFUSED))
}

/// [`WELCOME`], [`COOKIE`], or what [`reason`] makes a reason of.
#[inline(never)]
pub fn check<T: Tables>(tables: &T, seen: &Seen, service: &Service) -> u32 {
    if service.checks & Service::ACCESS != 0 && !admitted(tables, seen, service) {
        return REFUSED + Reason::Denied as u32;
    }
    let opens = seen.opens() || (seen.tuple.protocol == UDP && !seen.headless);
    if !opens || T::DRY {
        return WELCOME;
    }
    let Some(limits) = tables.limits(service.id) else { return WELCOME };
    let now = tables.now();
    if service.checks & Service::SOURCE_RATE != 0 {
        let [a, b, c, d] = seen.tuple.source.0;
        let prefix = if seen.v4 {
            Address([a, b, c, d & limits.mask_v4])
        } else {
            let [m, n, o, p] = limits.mask_v6;
            Address([a & m, b & n, c & o, d & p])
        };
        let key = SourceKey { prefix, service: service.id };
        let (gap, ahead) = (limits.source_gap, limits.source_ahead);
        if !tables.source(&key, |bucket| fill(bucket, now, gap, ahead)).unwrap_or(true) {
            return REFUSED + Reason::SourceRate as u32;
        }
    }
    if service.checks & Service::SERVICE_RATE != 0 {
        let (gap, ahead) = (limits.service_gap, limits.service_ahead);
        if !tables.meter(service.id, FLOWS, |bucket| fill(bucket, now, gap, ahead)).unwrap_or(true) {
            return REFUSED + Reason::ServiceRate as u32;
        }
    }
    if service.checks & Service::COOKIES != 0 {
        let (gap, ahead) = (limits.cookie_gap, limits.cookie_ahead);
        if !tables.meter(service.id, SYNS, |bucket| fill(bucket, now, gap, ahead)).unwrap_or(true) {
            return COOKIE;
        }
    }
    WELCOME
}

/// Whether the next SYN of a service would be answered with a cookie.
#[inline(always)]
pub fn attacked<T: Tables>(tables: &T, service: u32) -> bool {
    let Some(limits) = tables.limits(service) else { return false };
    let (now, gap, ahead) = (tables.now(), limits.cookie_gap, limits.cookie_ahead);
    tables.meter(service, SYNS, |bucket| !fill(&mut bucket.clone(), now, gap, ahead)).unwrap_or(false)
}

#[inline(always)]
fn admitted<T: Tables>(tables: &T, seen: &Seen, service: &Service) -> bool {
    let data = AccessKeyData { service: service.id.to_be(), client: seen.tuple.source };
    match tables.access(&AccessKey { prefix: ACCESS_DATA, data }) {
        Some(access) => access == Access::Allow as u32,
        None => service.checks & Service::CLOSED == 0,
    }
}

/// False: the bucket is full.
#[inline(always)]
fn fill(bucket: &mut u64, now: u64, gap: u64, ahead: u64) -> bool {
    let next = if *bucket > now { *bucket } else { now } + gap;
    let fits = next - now <= ahead;
    if fits {
        *bucket = next;
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::SECOND;

    #[test]
    fn a_bucket_lets_a_burst_through_and_then_its_rate() {
        let (gap, burst) = (SECOND / 100, 20);
        let mut bucket = 0;
        let mut passed = |now| (0..1000).filter(|_| fill(&mut bucket, now, gap, burst * gap)).count();
        assert_eq!(passed(10 * SECOND), 20);
        assert_eq!(passed(10 * SECOND), 0);
        assert_eq!(passed(10 * SECOND + 5 * gap), 5);
        assert_eq!(passed(20 * SECOND), 20);
    }
}
