//! An explanation in words.

use std::fmt::{self, Display, Formatter};

use super::{
    Real,
    explain::{Explanation, FlowSeen, Outcome, Reasoning, Shares, Slot},
};

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { client, vip, packet, interface, .. } = self;
        writeln!(f, "{packet} from {client} to {vip}, coming by {interface}")?;
        writeln!(f, "  outcome  {}", self.outcome)?;
        if let Some(service) = &self.service {
            write!(f, "  service  {} ({})", service.id, service.mode)?;
            if !service.checks.is_empty() {
                write!(f, ", checks: {}", service.checks.join(", "))?;
            }
            writeln!(f)?;
        }
        if let Some(slot) = &self.slot {
            writeln!(f, "  slot     {slot}")?;
        }
        if let Some(real) = &self.real {
            writeln!(f, "  real     {real}")?;
        }
        if self.service.is_some() && self.why != Reasoning::Nothing {
            writeln!(f, "  because  {}", self.why)?;
        }
        if let Some(flow) = &self.flow {
            writeln!(f, "  flow     {flow}")?;
        }
        match self.hop {
            Some("kept") => writeln!(f, "  hop      as kept beside the real: {}", Way(self.real.as_ref()))?,
            Some(_) => {
                writeln!(f, "  hop      asked of the kernel, since tidegate does not watch the routes just now")?
            }
            None => {}
        }
        if let Some(sent) = &self.sent {
            writeln!(f, "  sent     {sent}")?;
        }
        if let Some(note) = self.note {
            writeln!(f, "  note     {note}")?;
        }
        Ok(())
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwarded { interface } => write!(f, "forwarded, out of {interface}"),
            Self::Dropped { reason, advice } => write!(f, "DROPPED ({reason}): {advice}"),
            Self::Passed { because } => write!(f, "PASSED to the host: {because}"),
        }
    }
}

impl Display for Slot {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.number, self.of)?;
        match (&self.moving, self.real) {
            (Some(moving), _) => {
                let name =
                    |real: &Option<Real>| real.as_ref().map_or("nobody".to_owned(), |real| real.address.to_string());
                write!(
                    f,
                    ", which moves from {} to {} ({})",
                    name(&moving.previous),
                    name(&moving.current),
                    moving.phase
                )
            }
            (None, Some(real)) => write!(f, ", which is real {real}'s"),
            (None, None) => Ok(()),
        }
    }
}

impl Display for Real {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} (real {}), {}, weight {}", self.address, self.id, self.state, self.weight)
    }
}

/// The next hop of a real.
struct Way<'a>(Option<&'a Real>);

impl Display for Way<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(hop) = self.0.and_then(|real| real.hop.as_ref()) else { return f.write_str("none") };
        write!(f, "{} by {}", hop.mac, hop.interface)?;
        if let Some(vlan) = hop.vlan {
            write!(f, ", VLAN {vlan}")?;
        }
        if hop.mtu != 0 {
            write!(f, ", MTU {}", hop.mtu)?;
        }
        Ok(())
    }
}

impl Display for Reasoning {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "no real was looked for",
            Self::Slot => "the flow's slot is this real's",
            Self::MovingNew => "the slot changes hands, and the packet begins something: it goes to the new real",
            Self::Recorded => "the slot changes hands, and this flow is recorded as the real's",
            Self::MovingPrevious => {
                "the slot changes hands, and the flow is from before: it stays with the previous real"
            }
            Self::Flow => "the flow is known, and keeps its real",
            Self::NewFlow => "no such flow is known: it would be made, with the real of its slot",
            Self::Other => "it is an answer, an error or an echo",
        })
    }
}

impl Display for FlowSeen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.local {
            Some(local) => write!(f, "from {local} to the real, {}", self.state)?,
            None => f.write_str(self.state)?,
        }
        if self.state != "new" {
            write!(f, ", last packet {} s ago", self.idle_s)?;
        }
        Ok(())
    }
}

impl Display for Shares {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Explanation { client, vip, packet, .. } = &self.example;
        writeln!(f, "{packet} from {} ports of {} to {vip}:", self.asked, client.ip())?;
        for share in &self.reals {
            let percent = 100.0 * f64::from(share.ports) / f64::from(self.asked);
            writeln!(f, "  {percent:5.1} %  {}", share.real)?;
        }
        for (outcome, ports) in &self.others {
            writeln!(f, "  {:5.1} %  {outcome}", 100.0 * f64::from(*ports) / f64::from(self.asked))?;
        }
        writeln!(f, "for example:")?;
        write!(f, "{}", self.example)
    }
}
