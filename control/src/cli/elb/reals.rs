//! What layer 4 says of an ELB's instances, in columns.

use crate::{
    api::{DrainBody, Layer4Body, RealBody},
    cli::table::{count, table},
};

pub(super) fn print(layer4: &Layer4Body) {
    if !layer4.reals.is_empty() {
        let rows: Vec<Vec<String>> = layer4.reals.iter().map(row).collect();
        println!("\n{}", table(&["LISTENS AT", "REAL", "HEALTH", "LIVE", "NEW", "PACKETS", "WHY"], &rows));
    }
    for listen in &layer4.fail_open {
        println!(
            "\n{listen}: nearly all reals look bad, which is more likely a fault between here and there: they get new \
             connections all the same"
        );
    }
    if !layer4.drains.is_empty() {
        println!("\nlast drains:");
        layer4.drains.iter().for_each(|drain| println!("  {}", told(drain)));
    }
}

fn row(real: &RealBody) -> Vec<String> {
    vec![
        real.listen.clone(),
        real.real.to_string(),
        real.health.clone(),
        real.live.map_or_else(|| "-".to_owned(), |live| live.to_string()),
        real.flows.to_string(),
        real.packets.to_string(),
        real.why.clone().unwrap_or_default(),
    ]
}

fn told(drain: &DrainBody) -> String {
    let end = match drain.cut {
        0 => "0 broken".to_owned(),
        cut => format!("left with {} alive", count(cut as usize, "connection")),
    };
    format!("{} {} drained for {} s: {end}", drain.listen, drain.real, drain.lasted_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_says_what_it_cost() {
        let drain = |cut| DrainBody {
            listen: "tcp 10.77.100.1:80".to_owned(),
            real: "10.77.2.1:8080".parse().unwrap(),
            lasted_s: 9,
            cut,
        };
        assert_eq!(told(&drain(0)), "tcp 10.77.100.1:80 10.77.2.1:8080 drained for 9 s: 0 broken");
        assert!(told(&drain(1)).ends_with("left with 1 connection alive"), "{}", told(&drain(1)));
    }
}
