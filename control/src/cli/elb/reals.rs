//! What layer 4 says of an ELB's instances, in columns.

use crate::{
    api::{DrainBody, Layer4Body, RealBody},
    cli::table::table,
};

pub(super) fn print(layer4: &Layer4Body) {
    if !layer4.reals.is_empty() {
        println!("\n{}", columns(&layer4.reals));
    }
    for listen in &layer4.fail_open {
        println!(
            "\n{listen}: nearly all reals look bad, which is more likely a fault between here and there: they get new \
             connections all the same"
        );
    }
    if !layer4.drains.is_empty() {
        let lines: Vec<String> = layer4.drains.iter().map(DrainBody::says).collect();
        println!("\nlast drains:\n  {}", lines.join("\n  "));
    }
}

fn columns(reals: &[RealBody]) -> String {
    let rows: Vec<Vec<String>> = reals.iter().map(row).collect();
    table(&["LISTENS AT", "REAL", "INSTANCE", "HEALTH", "LIVE", "NEW", "PACKETS", "WHY"], &rows)
}

fn row(real: &RealBody) -> Vec<String> {
    vec![
        real.listen.clone(),
        real.real.to_string(),
        real.instance.clone().unwrap_or_else(|| "-".to_owned()),
        real.health.clone(),
        real.live.map_or_else(|| "-".to_owned(), |live| live.to_string()),
        real.flows.to_string(),
        real.packets.to_string(),
        real.says(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_real_stands_in_a_row_with_its_instance_and_what_it_does() {
        let real = RealBody {
            listen: "tcp 10.77.100.1:80".to_owned(),
            real: "10.77.2.1:8080".parse().unwrap(),
            instance: Some("demo.1".to_owned()),
            verdict: Some("drain".to_owned()),
            health: "up".to_owned(),
            why: None,
            live: Some(2),
            packets: 70,
            flows: 5,
            refusals: 0,
        };
        let gone = RealBody { instance: None, verdict: None, live: None, ..real.clone() };
        let text = columns(&[real, gone]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "tcp 10.77.100.1:80  10.77.2.1:8080  demo.1    up      2     5    70       drains: 2 connections live"
        );
        assert_eq!(lines[2], "tcp 10.77.100.1:80  10.77.2.1:8080  -         up      -     5    70");
    }
}
