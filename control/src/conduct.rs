//! The loop: holds the [`State`], gives events to `step`, and carries out what it asks for.
//!
//! Nothing here waits for a disk, a socket or an HTTP answer: what must wait is handed to a task.

use std::{collections::VecDeque, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cycle::{self, Effect, Event, Fetch, State},
    io::{self, store::Memory},
    view::{MarathonSeen, Snapshot, View},
    writer::Decree,
};

/// Events that are taken in one go before the view is renewed.
const BATCH: usize = 256;

/// What `step` wants looked up or tried.
#[derive(Clone, Debug)]
pub enum Errand {
    Probe { app: crate::model::app::AppId, instance: crate::model::app::InstanceId, address: std::net::SocketAddr },
    Resolve { host: Arc<str> },
}

/// The planes' newest Inputs.
#[derive(Debug)]
pub struct Outputs {
    pub l4: watch::Sender<Arc<tidegate_l4::Input>>,
    pub l7: watch::Sender<Arc<tidegate_l7::Input>>,
    pub dns: watch::Sender<Arc<tidegate_dns::Input>>,
}

/// The loop and everything that it can reach.
#[derive(Debug)]
pub struct Conductor {
    state: State,
    marathon: MarathonSeen,
    view: Arc<View>,
    outputs: Outputs,
    memory: Arc<Memory>,
    fetches: mpsc::Sender<Fetch>,
    errands: mpsc::UnboundedSender<Errand>,
    /// Fetches that found the channel full: they are few, and none may be lost.
    waiting: VecDeque<Fetch>,
}

impl Conductor {
    pub fn new(
        state: State,
        view: Arc<View>,
        outputs: Outputs,
        memory: Arc<Memory>,
        fetches: mpsc::Sender<Fetch>,
        errands: mpsc::UnboundedSender<Errand>,
    ) -> Self {
        Self {
            state,
            marathon: MarathonSeen::default(),
            view,
            outputs,
            memory,
            fetches,
            errands,
            waiting: VecDeque::new(),
        }
    }

    /// Until `stop`.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut decrees: mpsc::Receiver<Decree>,
        stop: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(decree) = decrees.recv() => {
                    self.event(Event::Desired(decree.desired));
                    self.show();
                    // Whoever asked may be gone.
                    let _ = decree.done.send(());
                }
                _ = tick.tick() => {
                    self.event(Event::Tick);
                    self.show();
                }
                // Without Marathon's task there is no more news; the rest goes on.
                1.. = events.recv_many(&mut batch, BATCH) => {
                    for event in batch.drain(..) {
                        self.event(event);
                    }
                    self.show();
                }
            }
        }
    }

    /// One event, and all that follows from it.
    pub fn event(&mut self, event: Event) {
        let now = io::now();
        self.marathon.note(&event, now);
        for effect in cycle::step(&mut self.state, event, now) {
            self.carry_out(effect);
        }
        self.send_fetches();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish => self.publish(),
            Effect::FetchAll | Effect::FetchApp(_) | Effect::FetchDefinition { .. } => {
                self.waiting.extend(effect.fetch());
            }
            Effect::Probe { app, instance, address } => self.errand(Errand::Probe { app, instance, address }),
            Effect::Resolve { host } => self.errand(Errand::Resolve { host }),
            Effect::Remember { id, app } => self.memory.remember(id, app),
            Effect::Alarm { key, alarm: Some(alarm) } => tracing::warn!(alarm = key, "{}", alarm.text),
            Effect::Alarm { key, alarm: None } => tracing::info!(alarm = key, "over"),
            Effect::Note(text) => tracing::info!("{text}"),
        }
    }

    fn errand(&self, errand: Errand) {
        // The other end is gone only while stopping.
        let _ = self.errands.send(errand);
    }

    fn publish(&self) {
        let compiled = &self.state.compiled;
        send(&self.outputs.l4, &compiled.l4, |input| input.generation);
        send(&self.outputs.l7, &compiled.l7, |input| input.generation);
        send(&self.outputs.dns, &compiled.dns, |input| input.generation);
    }

    fn send_fetches(&mut self) {
        while let Some(fetch) = self.waiting.pop_front() {
            match self.fetches.try_send(fetch) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(fetch)) => return self.waiting.push_front(fetch),
                Err(mpsc::error::TrySendError::Closed(_)) => return self.waiting.clear(),
            }
        }
    }

    /// Lets the API see the state as it is now.
    pub fn show(&self) {
        self.view.publish(Snapshot { state: self.state.clone(), marathon: self.marathon.clone() });
    }
}

fn send<T>(output: &watch::Sender<Arc<T>>, input: &Arc<T>, generation: impl Fn(&T) -> u64) {
    output.send_if_modified(|now| {
        let newer = generation(input) != generation(now);
        if newer {
            *now = input.clone();
        }
        newer
    });
}

/// Does the errands, each by itself and so many at a time.
pub async fn errands(mut wanted: mpsc::UnboundedReceiver<Errand>, events: mpsc::Sender<Event>) {
    const AT_ONCE: usize = 256;
    let mut running = tokio::task::JoinSet::new();
    while let Some(errand) = wanted.recv().await {
        while running.len() >= AT_ONCE {
            running.join_next().await;
        }
        while running.try_join_next().is_some() {}
        let events = events.clone();
        running.spawn(async move {
            let event = match errand {
                Errand::Probe { app, instance, address } => {
                    let open = io::probe::open(address).await;
                    Event::Probed { app, instance, open }
                }
                Errand::Resolve { host } => {
                    let addresses: Vec<IpAddr> = io::resolve::addresses(&host).await;
                    Event::Resolved { host, addresses }
                }
            };
            // The loop is gone only while stopping.
            let _ = events.send(event).await;
        });
    }
}
