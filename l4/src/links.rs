//! The interfaces that the program is attached to: one may go, and come back as another one with the same name.

use tracing::{info, warn};

use crate::{config::Config, network::Link, report::Attached};

#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) config: Config,
    /// As they were when the program was attached; index 0: gone.
    links: Vec<Link>,
    attached: Vec<Attached>,
}

impl Links {
    pub(crate) fn new(config: &Config, links: Vec<Link>, attached: Vec<Attached>) -> Self {
        Self { config: config.clone(), links, attached }
    }

    /// Where the program is attached.
    pub(crate) fn attached(&self) -> Vec<Attached> {
        let there = self.links.iter().zip(&self.attached).filter(|(link, _)| link.index != 0);
        there.map(|(_, attached)| attached.clone()).collect()
    }

    /// Compares with what is there now: those that came back, by their place. `index` knows an interface by its name.
    pub(crate) fn returned(&mut self, index: impl Fn(&str) -> Option<u32>) -> Vec<(usize, String)> {
        let mut returned = Vec::new();
        for (place, link) in self.links.iter_mut().enumerate() {
            match index(&link.name) {
                Some(index) if index == link.index => {}
                Some(_) => returned.push((place, link.name.clone())),
                None => {
                    if link.index != 0 {
                        warn!(interface = link.name, "the interface is gone");
                    }
                    link.index = 0;
                }
            }
        }
        returned
    }

    pub(crate) fn set(&mut self, place: usize, link: Link, mode: &'static str) {
        info!(interface = link.name, mode, "the interface is back, and the balancer is attached");
        self.attached[place] = Attached { interface: link.name.clone(), mode };
        self.links[place] = link;
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let gone = self.links.iter().filter(|link| link.index == 0);
        gone.map(|link| {
            format!(
                "the interface {} is gone, and with it its part of the traffic: make it again (the balancer is attached \
                 then), or take it out of l4.interfaces",
                link.name
            )
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_gone_until_one_of_its_name_is_there() {
        let link =
            |name: &str, index| Link { name: name.to_owned(), index, up: true, loopback: false, mac: None, mtu: 1500 };
        let at = |interface: &str| Attached { interface: interface.to_owned(), mode: "native" };
        let mut links = Links::new(&Config::default(), vec![link("a", 2), link("b", 3)], vec![at("a"), at("b")]);
        assert_eq!((links.returned(|name| Some(if name == "a" { 2 } else { 3 })), links.problems()), (vec![], vec![]));
        assert!(links.returned(|name| (name == "a").then_some(2)).is_empty());
        assert_eq!(links.attached(), [at("a")]);
        assert!(links.problems()[0].contains("interface b is gone"));
        assert_eq!(links.returned(|name| Some(if name == "a" { 2 } else { 9 })), [(1, "b".to_owned())]);
        assert!(!links.problems().is_empty(), "not yet");
        links.set(1, link("b", 9), "generic");
        assert_eq!((links.problems(), links.attached().len()), (vec![], 2));
    }
}
