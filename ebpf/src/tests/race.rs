//! Two CPUs that give the same place away.

use crate::{
    abi::{Flow, SECOND, TCP},
    balance::{Verdict, balance},
    host::Frame,
    layers, scripts,
};

#[test]
fn a_place_that_another_cpu_has_just_given_away_is_not_given_away_again() {
    let now = 1000 * SECOND;
    let memory = scripts::world(now);
    let send = || {
        balance(&mut Frame::new(&layers::write("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4000 > 80 S"), 1), &memory)
    };
    let sent = send();
    assert!(matches!(sent, Verdict::Transmit | Verdict::Redirect(_)), "{sent:?}");
    let first: Vec<u32> =
        memory.0.borrow_mut().flows.drain().filter(|(_, flow)| flow.protocol != 0).map(|(place, _)| place).collect();
    assert_eq!(first.len(), 1);

    let other = Flow { protocol: TCP, client_port: 9, service: 999, seen: Flow::tick(now), ..Flow::default() };
    memory.0.borrow_mut().raced = Some(other);
    send();
    let flows = memory.0.borrow().flows.clone();
    assert_eq!(flows[&first[0]].client_port, 9, "the other CPU's flow keeps its place");
    send();
    let flows = &memory.0.borrow().flows;
    let mut ports: Vec<u16> =
        flows.values().filter(|flow| flow.protocol != 0).map(|flow| u16::from_be(flow.client_port)).collect();
    ports.sort_unstable();
    assert_eq!(ports.len(), 2, "and ours has found another one by its second SYN");
}
