//! The rules by which a change is taken or refused.

mod layer4;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    app::AppId,
    desired::{Change, Desired, Outcome, Pools, Refused},
    elb::{Elb, ElbName, ElbSpec, Layer7, Rule, Scope, Target},
    observed::Observed,
    ports,
};

impl Desired {
    /// Takes a change or says why not. Declarative: the same change again is `Unchanged`.
    /// With `observed` the jobs must exist, unless `allow_missing`.
    pub fn apply(
        &self,
        change: Change,
        pools: &Pools,
        observed: Option<&Observed>,
        allow_missing: bool,
    ) -> Result<(Self, Outcome), Refused> {
        match change {
            Change::Put { name, spec } => {
                check_name(&name)?;
                let spec = checked(spec)?;
                // What is wanted already may be wanted again, whatever became of its job.
                let new = self.elbs.get(&name).is_none_or(|old| old.spec != spec);
                if let Some(observed) = observed.filter(|_| new && !allow_missing) {
                    check_jobs(&spec, observed)?;
                }
                match self.elbs.get(&name) {
                    Some(old) => self.update(name, old, spec),
                    None => self.create(name, spec, pools),
                }
            }
            Change::Delete { name } => {
                let mut next = self.clone();
                match next.elbs.remove(&name) {
                    None => Ok((next, Outcome::Unchanged)),
                    Some(_) => {
                        next.revision += 1;
                        Ok((next, Outcome::Deleted))
                    }
                }
            }
        }
    }

    fn create(&self, name: ElbName, spec: ElbSpec, pools: &Pools) -> Result<(Self, Outcome), Refused> {
        let scope = spec.scope();
        if pools.of(scope).is_empty() {
            return Err(Refused::NoPool { scope });
        }
        let vips = match spec.wanted_vips() {
            [] => self.allocate(scope, pools)?,
            wanted => {
                self.check_vips(wanted, scope, pools)?;
                wanted.to_vec()
            }
        };
        Ok((self.with(name, spec, vips), Outcome::Created))
    }

    fn update(&self, name: ElbName, old: &Elb, mut spec: ElbSpec) -> Result<(Self, Outcome), Refused> {
        match (&old.spec, &spec) {
            (ElbSpec::Layer4(_), ElbSpec::Layer4(_)) | (ElbSpec::Layer7(_), ElbSpec::Layer7(_)) => {}
            _ => return Err(Refused::TypeChange { name }),
        }
        if spec.scope() != old.spec.scope() {
            return Err(Refused::ScopeChange { name, scope: old.spec.scope() });
        }
        // An update without addresses, or with those that were given, asks for the same.
        let wanted: BTreeSet<_> = spec.wanted_vips().iter().collect();
        if !wanted.is_empty() && wanted != old.vips.iter().collect() {
            return Err(Refused::VipChange { name, vips: old.vips.clone() });
        }
        *vips_of(&mut spec) = old.spec.wanted_vips().to_vec();
        if spec == old.spec {
            return Ok((self.clone(), Outcome::Unchanged));
        }
        Ok((self.with(name, spec, old.vips.clone()), Outcome::Updated))
    }

    fn with(&self, name: ElbName, spec: ElbSpec, vips: Vec<IpAddr>) -> Self {
        let mut next = self.clone();
        next.revision += 1;
        next.elbs.insert(name, Arc::new(Elb { spec, vips, revision: next.revision }));
        next
    }

    fn owner(&self, vip: IpAddr) -> Option<&ElbName> {
        self.elbs.iter().find(|(_, elb)| elb.vips.contains(&vip)).map(|(name, _)| name)
    }

    fn check_vips(&self, wanted: &[IpAddr], scope: Scope, pools: &Pools) -> Result<(), Refused> {
        let mut seen = BTreeSet::new();
        for &vip in wanted {
            if !seen.insert(vip) {
                return Err(Refused::DuplicateVip { vip });
            }
            if !pools.of(scope).iter().any(|pool| pool.contains(&vip) && !reserved(pool, vip)) {
                return Err(Refused::VipOutside { vip, scope, pools: pools.of(scope).to_vec() });
            }
            if let Some(owner) = self.owner(vip) {
                return Err(Refused::VipTaken { vip, owner: owner.clone() });
            }
        }
        Ok(())
    }

    /// The lowest free address of each pool: two nodes that see the same desired state give the same address.
    fn allocate(&self, scope: Scope, pools: &Pools) -> Result<Vec<IpAddr>, Refused> {
        let mut taken: BTreeSet<IpAddr> = self.elbs.values().flat_map(|elb| elb.vips.iter().copied()).collect();
        let mut vips = Vec::new();
        for pool in pools.of(scope) {
            let vip = addresses(pool)
                .find(|&vip| !reserved(pool, vip) && !taken.contains(&vip))
                .ok_or(Refused::PoolExhausted { pool: *pool })?;
            taken.insert(vip);
            vips.push(vip);
        }
        Ok(vips)
    }
}

fn vips_of(spec: &mut ElbSpec) -> &mut Vec<IpAddr> {
    match spec {
        ElbSpec::Layer4(spec) => &mut spec.vips,
        ElbSpec::Layer7(spec) => &mut spec.vips,
    }
}

/// Every address of the network in order. Lazy: an IPv6 pool is never walked to its end.
fn addresses(pool: &IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match pool {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            Box::new((first..=last).map(|bits| IpAddr::V4(bits.into())))
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            Box::new((first..=last).map(|bits| IpAddr::V6(bits.into())))
        }
    }
}

/// The network's and the broadcast address, and the all-routers anycast address of IPv6 (`::0`): hosts do not own them.
fn reserved(pool: &IpNet, vip: IpAddr) -> bool {
    match pool {
        IpNet::V4(net) => net.prefix_len() < 31 && (vip == net.network() || vip == net.broadcast()),
        IpNet::V6(net) => net.prefix_len() < 127 && vip == net.network(),
    }
}

fn check_name(name: &str) -> Result<(), Refused> {
    let fits = (1..=40).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits { Ok(()) } else { Err(Refused::Name { name: name.to_owned() }) }
}

/// The spec in its one normal form, or why it makes no sense.
fn checked(spec: ElbSpec) -> Result<ElbSpec, Refused> {
    let spec = match spec {
        ElbSpec::Layer4(spec) => ElbSpec::Layer4(layer4::checked(spec)?),
        ElbSpec::Layer7(spec) => ElbSpec::Layer7(checked_l7(spec)?),
    };
    spec.apps().iter().try_for_each(check_app_id)?;
    Ok(spec)
}

fn checked_l7(mut spec: Layer7) -> Result<Layer7, Refused> {
    if spec.listen.is_empty() {
        return Err(Refused::NoListen);
    }
    spec.listen.sort_unstable();
    for &listen in &spec.listen {
        check_listen(listen)?;
    }
    if let Some(both) = spec.listen.windows(2).find(|both| both[0] == both[1]) {
        return Err(Refused::DuplicateListen { listen: both[0] });
    }
    if spec.rules.is_empty() {
        return Err(Refused::NoRules);
    }
    for rule in &mut spec.rules {
        normalise(rule)?;
    }
    spec.rules.sort_by(|a, b| (&a.host, &a.path).cmp(&(&b.host, &b.path)));
    if let Some(both) =
        spec.rules.windows(2).find(|both| (&both[0].host, &both[0].path) == (&both[1].host, &both[1].path))
    {
        let host = both[0].host.clone().unwrap_or_else(|| "any host".to_owned());
        return Err(Refused::DuplicateRule { host, path: both[0].path.clone() });
    }
    Ok(spec)
}

fn normalise(rule: &mut Rule) -> Result<(), Refused> {
    check_target(&mut rule.target)?;
    if let Some(host) = &mut rule.host {
        host.make_ascii_lowercase();
        check_host(host)?;
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
    if !rule.path.starts_with('/') || !rule.path.bytes().all(plain) {
        return Err(Refused::Path { path: rule.path.clone() });
    }
    // `/api/` and `/api` match the same requests.
    let kept = rule.path.trim_end_matches('/').len().max(1);
    rule.path.truncate(kept);
    Ok(())
}

fn check_host(host: &str) -> Result<(), Refused> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let plain = host.strip_prefix("*.").unwrap_or(host);
    if host.len() <= 253 && plain.split('.').all(label) { Ok(()) } else { Err(Refused::Host { host: host.to_owned() }) }
}

fn check_listen(listen: u16) -> Result<(), Refused> {
    if listen == 0 { Err(Refused::PortZero) } else { Ok(()) }
}

/// A name of digits only is the number: Marathon takes no such name for a port, and people quote numbers.
fn check_target(target: &mut Option<Target>) -> Result<(), Refused> {
    if let Some(Target::Name(name)) = target
        && let Ok(number) = name.parse()
    {
        *target = Some(Target::Number(number));
    }
    match target {
        Some(Target::Number(0)) => Err(Refused::PortZero),
        Some(Target::Name(name)) if name.is_empty() => Err(Refused::EmptyTarget),
        _ => Ok(()),
    }
}

fn check_app_id(app: &AppId) -> Result<(), Refused> {
    let segment = |segment: &str| {
        !segment.is_empty() && segment.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
    };
    let fits = app.strip_prefix('/').is_some_and(|path| path.split('/').all(segment));
    if fits { Ok(()) } else { Err(Refused::AppId { app: app.clone() }) }
}

fn check_jobs(spec: &ElbSpec, observed: &Observed) -> Result<(), Refused> {
    for app in spec.apps() {
        if !observed.apps.contains_key(&app) {
            return Err(Refused::UnknownJob { hint: hint(&app, observed), app });
        }
    }
    for (app, target, transport) in spec.targets() {
        if let Some(definition) = observed.apps.get(app).and_then(|app| app.newest())
            && ports::place(definition, target, transport).is_none()
        {
            return Err(Refused::NoSuchPort(ports::no_port(app, definition, target)));
        }
    }
    Ok(())
}

/// The nearest known id, if one is near enough to be a slip of the finger.
fn hint(app: &str, observed: &Observed) -> String {
    let nearest = observed.apps.keys().map(|known| (distance(app, known), known)).min();
    match nearest {
        None => "Marathon lists no app at all".to_owned(),
        Some((far, known)) if far <= 3.max(app.len() / 3) => format!("did you mean {known}"),
        Some(_) => format!("it lists {} others, none with a similar name", observed.apps.len()),
    }
}

/// How many letters must be changed, added or taken away to get from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
