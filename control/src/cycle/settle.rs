//! After an event: admit who may serve, ask for what is missing, remember, compile what was touched, publish.

use std::{collections::BTreeSet, sync::Arc};

use super::{Effect, Turn};
use crate::{
    compile::{Planes, Writer, dns},
    model::{
        app::{App, AppId, Instance, InstanceId, TaskState},
        elb::ElbName,
        ports::{self, Place},
        traffic::{Reason, Verdict, verdict},
    },
};

impl Turn<'_> {
    pub(super) fn settle(&mut self) {
        let mut labels = BTreeSet::new();
        for (id, changed) in std::mem::take(&mut self.apps) {
            let admitted = self.admit(&id);
            let app = self.state.observed.apps.get(&id).cloned();
            match &app {
                Some(app) => {
                    self.state.index.add_app(&id);
                    self.state.index.add_agents(app);
                    self.ask(app);
                }
                None => {
                    self.state.index.remove_app(&id);
                    self.state.links.unready.remove(&id);
                }
            }
            if changed || admitted {
                self.effects.push(Effect::Remember { id: id.clone(), app });
            }
            labels.insert(dns::app_label(&id));
            let touched: Vec<ElbName> = self.state.index.elbs_of(&id).cloned().collect();
            for elb in touched {
                let same = self.state.desired.elbs.get(&elb).cloned();
                self.elbs.entry(elb).or_insert(same);
            }
        }
        self.compile(&labels);
        if self.state.links.unpublished && self.may_publish() {
            self.state.links.unpublished = false;
            self.state.links.published = true;
            self.effects.push(Effect::Publish);
        }
    }

    /// Marks the instances that have passed: from here on, missing news takes nothing away from them.
    fn admit(&mut self, id: &AppId) -> bool {
        let Some(app) = self.state.observed.apps.get(id) else { return false };
        let passed: Vec<InstanceId> = app
            .instances
            .values()
            .filter(|instance| !instance.admitted)
            .filter(|instance| match verdict(app, instance) {
                Verdict::Serve => true,
                Verdict::Hold(Reason::FirstConnect) => self.first_look,
                _ => false,
            })
            .map(|instance| instance.id.clone())
            .collect();
        if passed.is_empty() {
            return false;
        }
        if let Some(app) = self.state.observed.apps.get_mut(id) {
            let app = Arc::make_mut(app);
            for id in passed {
                if let Some(instance) = app.instances.get_mut(&id) {
                    Arc::make_mut(instance).admitted = true;
                }
            }
        }
        true
    }

    /// Asks for what stands between the app's instances and their traffic.
    fn ask(&mut self, app: &App) {
        let unready = |instance: &Arc<Instance>| matches!(verdict(app, instance), Verdict::Hold(reason) | Verdict::Drain(reason) if reason.is_readiness());
        if app.instances.values().any(unready) {
            self.state.links.unready.entry(app.id.clone()).or_insert(self.now);
        } else {
            self.state.links.unready.remove(&app.id);
        }
        for instance in app.instances.values() {
            if !instance.host.is_empty() && instance.host.parse::<std::net::IpAddr>().is_err() {
                self.look_up(&instance.host);
            }
            if !app.definitions.contains_key(&instance.version)
                && !matches!(instance.state, TaskState::Staging | TaskState::Starting)
            {
                self.fetch_definition(&app.id, &instance.version);
            }
            if verdict(app, instance) == Verdict::Hold(Reason::FirstConnect)
                && !self.state.links.probes.contains_key(&instance.id)
                && let Some(definition) = app.definition_of(instance)
            {
                let tcp = (0..definition.ports.len()).filter(|&index| definition.ports[index].tcp);
                let at = tcp
                    .map(Place::Index)
                    .find_map(|place| ports::find_any(instance, definition, place, &self.state.observed.hosts));
                if let Some(address) = at {
                    self.state.links.probes.insert(instance.id.clone(), (app.id.clone(), Some(self.now)));
                    let (app, instance) = (app.id.clone(), instance.id.clone());
                    self.effects.push(Effect::Probe { app, instance, address });
                }
            }
        }
    }

    fn compile(&mut self, labels: &BTreeSet<String>) {
        let state = &mut *self.state;
        let mut touched: Vec<(ElbName, Planes)> = Vec::new();
        let mut writer = Writer::new(
            &mut state.compiled,
            &mut state.index,
            &state.policy.domain,
            state.policy.ttl,
            &state.desired,
            &state.observed,
        );
        for (name, old) in &self.elbs {
            if let Some(old) = old {
                writer.clear_elb(name, old);
            }
        }
        let mut changed = writer.take_changed();
        for name in self.elbs.keys() {
            match state.desired.elbs.get(name) {
                Some(elb) => writer.fill_elb(name, elb),
                None => {
                    state.generations.remove(name);
                    continue;
                }
            }
            let planes = writer.take_changed();
            touched.push((name.clone(), planes));
            changed = changed.or(planes);
        }
        labels.iter().for_each(|label| writer.write_label(label));
        changed = changed.or(writer.take_changed());
        // Each plane's generation counts up only when that plane has something new.
        let compiled = &mut state.compiled;
        if changed.l4 {
            Arc::make_mut(&mut compiled.l4).generation += 1;
        }
        if changed.l7 {
            Arc::make_mut(&mut compiled.l7).generation += 1;
        }
        if changed.dns {
            Arc::make_mut(&mut compiled.dns).generation += 1;
        }
        for (name, planes) in touched {
            let at = state.generations.entry(name).or_default();
            let now =
                [(planes.l4, &mut at.l4, compiled.l4.generation), (planes.l7, &mut at.l7, compiled.l7.generation)];
            for (changed, at, generation) in now.into_iter().chain([(planes.dns, &mut at.dns, compiled.dns.generation)])
            {
                if changed {
                    *at = generation;
                }
            }
        }
        state.links.unpublished |= changed.any();
    }
}
